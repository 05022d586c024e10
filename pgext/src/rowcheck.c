/*
 * rowcheck.c
 *	  Rows that must not have been written between tau_start and the commit,
 *	  without anybody noticing that we looked: CHECK ops (docs/formats.md).
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "store.h"

#define OP_CHECK 10

/* Ascending keys of one table; lives as long as the transaction. */
struct MerRowChecks
{
	int64		sid;
	int			n;
	int			max;
	MerBytes   *keys;
};

void
mer_check_row(int64 sid, const char *key, uint32 len)
{
	struct MerRowChecks *checks = mer_txn.row_checks;
	char	   *copy;

	mer_txn_start();
	if (checks == NULL)
	{
		checks = mer_txn.row_checks = MemoryContextAllocZero(TopTransactionContext, sizeof(*checks));
		checks->sid = sid;
		checks->max = 256;
		checks->keys = MemoryContextAlloc(TopTransactionContext, checks->max * sizeof(MerBytes));
	}
	if (checks->sid != sid)
		elog(ERROR, "meridian: row checks of two tables");
	if (checks->n == checks->max)
	{
		checks->max *= 2;
		checks->keys = repalloc(checks->keys, checks->max * sizeof(MerBytes));
	}
	copy = MemoryContextAlloc(mer_txn.cxt, Max(len, 1));
	memcpy(copy, key, len);
	checks->keys[checks->n++] = (MerBytes) {copy, len};
}

void
mer_encode_row_checks(StringInfo out, void (*op_done) (void *), void *arg)
{
	struct MerRowChecks *checks = mer_txn.row_checks;
	StringInfoData hashes;

	if (checks == NULL)
		return;
	mp_put_array(out, 4);
	mp_put_int(out, OP_CHECK);
	mp_put_int(out, checks->sid);
	mp_put_array(out, checks->n);
	for (int i = 0; i < checks->n; i++)
		mp_put_bin(out, checks->keys[i].data, checks->keys[i].len);
	initStringInfo(&hashes);
	for (int i = 0; i < checks->n; i++)
		mer_put_hash(&hashes, checks->sid, MER_HASH_ROW, checks->keys[i].data,
					 checks->keys[i].len);
	mp_put_bin(out, hashes.data, hashes.len);
	pfree(hashes.data);
	op_done(arg);
}
