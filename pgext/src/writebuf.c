/*
 * writebuf.c
 *	  The ordered maps of uncommitted writes: key -> chain of versions.
 *
 * Entries are never removed from a tree before the transaction ends, so a
 * scan may keep a pointer to one and step to its neighbours at any time.
 * A chain lost all its versions (rollback to savepoint) stays as an empty
 * entry, which nobody sees.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "store.h"

/* Versions in memory may exceed what is shipped by this factor. */
#define BUFFER_FACTOR 3

static int
entry_compare(const RBTNode *a, const RBTNode *b, void *arg)
{
	const MerEntry *x = (const MerEntry *) a;
	const MerEntry *y = (const MerEntry *) b;

	return mer_key_cmp(x->key, x->klen, y->key, y->klen);
}

static void
entry_combine(RBTNode *existing, const RBTNode *newdata, void *arg)
{
	/* An insertion of a key that is there changes nothing. */
}

static RBTNode *
entry_alloc(void *arg)
{
	return MemoryContextAllocZero(mer_txn.cxt, sizeof(MerEntry));
}

static void
entry_free(RBTNode *node, void *arg)
{
	/* Memory goes with the transaction. */
}

MerBuf *
mer_buf_find(int64 sid)
{
	if (mer_txn.bufs == NULL)
		return NULL;
	return hash_search(mer_txn.bufs, &sid, HASH_FIND, NULL);
}

MerBuf *
mer_buf_get(int64 sid, Oid relid, bool is_index)
{
	MerBuf	   *buf;
	bool		found;
	MemoryContext old;

	if (sid == 0)
		elog(ERROR, "meridian: relation %u has no storage id", relid);
	mer_txn_start();
	if (mer_txn.shipping && sid >= 1000)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot write while the transaction is being committed")));
	if (mer_txn.bufs == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(int64), .entrysize = sizeof(MerBuf),
		.hcxt = mer_txn.cxt};

		mer_txn.bufs = hash_create("meridian writes", 16, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	buf = hash_search(mer_txn.bufs, &sid, HASH_ENTER, &found);
	if (found)
		return buf;
	old = MemoryContextSwitchTo(mer_txn.cxt);
	memset((char *) buf + sizeof(int64), 0, sizeof(MerBuf) - sizeof(int64));
	buf->relid = relid;
	buf->is_index = is_index;
	buf->tree = rbt_create(sizeof(MerEntry), entry_compare, entry_combine,
						   entry_alloc, entry_free, NULL);
	MemoryContextSwitchTo(old);
	if (mer_txn.last)
		mer_txn.last->next = buf;
	else
		mer_txn.first = buf;
	mer_txn.last = buf;
	return buf;
}

/* Forget all writes of a relation that was created by this transaction. */
void
mer_buf_clear(int64 sid)
{
	MerBuf	   *buf = mer_buf_find(sid);

	if (buf == NULL)
		return;
	for (MerEntry *e = mer_entry_first(buf); e; e = mer_entry_next(e))
		for (MerVersion *v = e->newest; v; v = v->older)
			v->dead = true;
}

MerEntry *
mer_entry_find(MerBuf *buf, const char *key, uint32 len)
{
	MerEntry	probe = {.key = key, .klen = len};

	return (MerEntry *) rbt_find(buf->tree, &probe.node);
}

MerEntry *
mer_entry_above(MerBuf *buf, const char *key, uint32 len, bool or_equal)
{
	MerEntry	probe = {.key = key, .klen = len};

	return (MerEntry *) rbt_find_great(buf->tree, &probe.node, or_equal);
}

MerEntry *
mer_entry_below(MerBuf *buf, const char *key, uint32 len, bool or_equal)
{
	MerEntry	probe = {.key = key, .klen = len};

	return (MerEntry *) rbt_find_less(buf->tree, &probe.node, or_equal);
}

/* The tree marks its leaves with a node that is its own child. */
static inline bool
is_leaf(const RBTNode *node)
{
	return node->left == node;
}

MerEntry *
mer_entry_first(MerBuf *buf)
{
	return (MerEntry *) rbt_leftmost(buf->tree);
}

MerEntry *
mer_entry_last(MerBuf *buf)
{
	RBTNode    *node = rbt_leftmost(buf->tree);

	if (node == NULL)
		return NULL;
	while (node->parent)
		node = node->parent;
	while (!is_leaf(node->right))
		node = node->right;
	return (MerEntry *) node;
}

MerEntry *
mer_entry_next(MerEntry *entry)
{
	RBTNode    *node = &entry->node;

	if (!is_leaf(node->right))
	{
		node = node->right;
		while (!is_leaf(node->left))
			node = node->left;
		return (MerEntry *) node;
	}
	while (node->parent && node->parent->right == node)
		node = node->parent;
	return (MerEntry *) node->parent;
}

MerEntry *
mer_entry_prev(MerEntry *entry)
{
	RBTNode    *node = &entry->node;

	if (!is_leaf(node->left))
	{
		node = node->left;
		while (!is_leaf(node->right))
			node = node->right;
		return (MerEntry *) node;
	}
	while (node->parent && node->parent->left == node)
		node = node->parent;
	return (MerEntry *) node->parent;
}

MerVersion *
mer_entry_newest(MerEntry *entry)
{
	MerVersion *v = entry->newest;

	while (v && v->dead)
		v = v->older;
	return v;
}

/* The first live version below the limit, or NULL: the stored row shows. */
MerVersion *
mer_entry_visible(MerEntry *entry, uint64 cid_limit)
{
	MerVersion *v = entry->newest;

	while (v && (v->dead || v->cid >= cid_limit))
		v = v->older;
	return v;
}

uint64
mer_cid_limit(Snapshot snapshot)
{
	if (snapshot == NULL)
		return PG_UINT64_MAX;
	if (snapshot->snapshot_type == SNAPSHOT_MVCC)
		return snapshot->curcid;
	return PG_UINT64_MAX;
}

const MerShape *
mer_buf_shape(MerBuf *buf, const AttrNumber *attnums, int n, int natts)
{
	MerShape   *shape;

	for (shape = buf->shapes; shape; shape = shape->next)
		if (shape->n == n && shape->natts == natts &&
			memcmp(shape->attnums, attnums, n * sizeof(AttrNumber)) == 0)
			return shape;
	shape = MemoryContextAlloc(mer_txn.cxt,
							   offsetof(MerShape, attnums) + n * sizeof(AttrNumber));
	shape->n = n;
	shape->natts = natts;
	memcpy(shape->attnums, attnums, n * sizeof(AttrNumber));
	shape->next = buf->shapes;
	buf->shapes = shape;
	return shape;
}

static char *
copy_bytes(const char *data, uint32 len)
{
	char	   *copy = MemoryContextAlloc(mer_txn.cxt, Max(len, 1));

	memcpy(copy, data, len);
	return copy;
}

/*
 * The size of a transaction is checked at COMMIT.  This bounds the memory of
 * one that changes the same rows again and again, or rolls back to savepoints.
 */
static void
count_bytes(uint64 bytes)
{
	mer_txn.bytes += bytes + sizeof(MerVersion);
	if (mer_txn.bytes > BUFFER_FACTOR * (uint64) mer_limit("txn_size_bytes"))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction size limit " INT64_FORMAT "mb exceeded",
						mer_limit("txn_size_bytes") / (1024 * 1024)),
				 errdetail("The transaction has buffered " UINT64_FORMAT "mb, superseded rows included.",
						   mer_txn.bytes / (1024 * 1024))));
}

MerVersion *
mer_buf_push(MerBuf *buf, const char *key, uint32 klen, const char *row,
			 uint32 rowlen, const MerShape *shape, CommandId cid,
			 bool base_present, bool blind)
{
	MerEntry	probe = {.key = key, .klen = klen};
	MerEntry   *entry;
	MerVersion *v;
	bool		is_new;

	entry = (MerEntry *) rbt_insert(buf->tree, &probe.node, &is_new);
	if (is_new)
	{
		entry->key = copy_bytes(key, klen);
		entry->klen = klen;
		entry->newest = NULL;
		buf->nentries++;
	}
	if (entry->newest == NULL)
	{
		entry->base_present = base_present;
		entry->identity = false;
		entry->blind = blind;
	}
	v = MemoryContextAllocZero(mer_txn.cxt, sizeof(MerVersion));
	v->entry = entry;
	v->key = entry->key;
	v->klen = entry->klen;
	v->sid = buf->sid;
	v->cid = cid;
	v->tombstone = row == NULL;
	v->row = row ? copy_bytes(row, rowlen) : NULL;
	v->rowlen = rowlen;
	v->shape = shape;
	v->older = entry->newest;
	entry->newest = v;
	count_bytes(klen + rowlen);
	mer_undo_push(v);
	return v;
}

/* Undo the newest push of this key. */
void
mer_buf_pop(MerVersion *version)
{
	if (version->entry->newest != version)
		elog(FATAL, "meridian: write buffer undone out of order");
	version->entry->newest = version->older;
	version->dead = true;
}
