/*
 * locks.c
 *	  Row locks: what this transaction has locked joins its write set as LOCK
 *	  and SHARE ops; nothing waits (design section 9, "Locks").
 *
 * A lock taken in a subtransaction that was rolled back stays: it can only
 * make the commit more careful.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "store.h"

#define WANT_LOCK 1				/* FOR NO KEY UPDATE: the row */
#define WANT_LOCK_IDENTITY 2	/* FOR UPDATE: and its identity */
#define WANT_SHARE 4
#define WANT_KEY_SHARE 8

typedef struct RowLock
{
	RBTNode		node;			/* must be first */
	int64		sid;
	const char *key;
	uint32		klen;
	int			want;
} RowLock;

static RBTree *locks;

static int
lock_compare(const RBTNode *a, const RBTNode *b, void *arg)
{
	const RowLock *x = (const RowLock *) a;
	const RowLock *y = (const RowLock *) b;

	if (x->sid != y->sid)
		return x->sid < y->sid ? -1 : 1;
	return mer_key_cmp(x->key, x->klen, y->key, y->klen);
}

static void
lock_combine(RBTNode *existing, const RBTNode *newdata, void *arg)
{
	((RowLock *) existing)->want |= ((const RowLock *) newdata)->want;
}

static RBTNode *
lock_alloc(void *arg)
{
	return MemoryContextAllocZero(mer_txn.cxt, sizeof(RowLock));
}

static void
lock_free(RBTNode *node, void *arg)
{
}

bool
mer_have_locks(void)
{
	return locks != NULL;
}

void
mer_locks_reset(void)
{
	locks = NULL;
}

static void
want(int64 sid, const char *key, uint32 klen, int bits)
{
	RowLock		probe = {.sid = sid,.key = key,.klen = klen,.want = bits};
	RowLock    *lock;
	bool		is_new;

	mer_txn_start();
	if (locks == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(mer_txn.cxt);

		locks = rbt_create(sizeof(RowLock), lock_compare, lock_combine,
						   lock_alloc, lock_free, NULL);
		MemoryContextSwitchTo(old);
	}
	lock = (RowLock *) rbt_insert(locks, &probe.node, &is_new);
	if (is_new)
	{
		char	   *copy = MemoryContextAlloc(mer_txn.cxt, Max(klen, 1));

		memcpy(copy, key, klen);
		lock->key = copy;
	}
}

void
mer_lock_row(int64 sid, const char *key, uint32 klen, LockTupleMode mode)
{
	switch (mode)
	{
		case LockTupleKeyShare:
			want(sid, key, klen, WANT_KEY_SHARE);
			break;
		case LockTupleShare:
			want(sid, key, klen, WANT_SHARE);
			break;
		case LockTupleNoKeyExclusive:
			want(sid, key, klen, WANT_LOCK);
			break;
		case LockTupleExclusive:
			want(sid, key, klen, WANT_LOCK | WANT_LOCK_IDENTITY);
			break;
	}
}

/* ---------- encoding ---------- */

#define KEYS_PER_OP 8192

typedef struct LockOp
{
	StringInfoData keys;
	StringInfoData rows;
	StringInfoData identities;
	int			n;
} LockOp;

static void
close_op(LockOp *op, StringInfo out, int64 sid, int bit)
{
	mp_put_array(out, 5);
	mp_put_int(out, bit == WANT_LOCK ? 3 : 4);
	mp_put_int(out, sid);
	mp_put_array(out, op->n);
	appendBinaryStringInfo(out, op->keys.data, op->keys.len);
	mp_put_bin(out, op->rows.data, op->rows.len);
	mp_put_bin(out, op->identities.data, op->identities.len);
	resetStringInfo(&op->keys);
	resetStringInfo(&op->rows);
	resetStringInfo(&op->identities);
	op->n = 0;
}

/* Keys of one op ascend; an op holds locks of one kind in one relation. */
static void
emit_kind(StringInfo out, int bit, void (*op_done) (void *), void *arg)
{
	LockOp		op = {.n = 0};
	RowLock    *lock = locks ? (RowLock *) rbt_leftmost(locks) : NULL;

	initStringInfo(&op.keys);
	initStringInfo(&op.rows);
	initStringInfo(&op.identities);
	while (lock)
	{
		RowLock    *next = (RowLock *) mer_entry_next((MerEntry *) lock);

		if (lock->want & bit)
		{
			mp_put_bin(&op.keys, lock->key, lock->klen);
			if (bit != WANT_KEY_SHARE)
				mer_put_hash(&op.rows, lock->sid, MER_HASH_ROW, lock->key, lock->klen);
			if (bit == WANT_KEY_SHARE ||
				(bit == WANT_LOCK && (lock->want & WANT_LOCK_IDENTITY)))
			{
				mer_pad_hashes(&op.identities, op.n);
				mer_put_hash(&op.identities, lock->sid, MER_HASH_IDENTITY, lock->key, lock->klen);
			}
			else if (op.identities.len > 0)
				mer_pad_hashes(&op.identities, op.n + 1);
			op.n++;
		}
		if (op.n > 0 && (next == NULL || next->sid != lock->sid || op.n >= KEYS_PER_OP))
		{
			close_op(&op, out, lock->sid, bit);
			op_done(arg);
		}
		lock = next;
	}
	pfree(op.keys.data);
	pfree(op.rows.data);
	pfree(op.identities.data);
}

void
mer_encode_locks(StringInfo out, void (*op_done) (void *), void *arg)
{
	emit_kind(out, WANT_LOCK, op_done, arg);
	emit_kind(out, WANT_SHARE, op_done, arg);
	emit_kind(out, WANT_KEY_SHARE, op_done, arg);
}
