/*
 * rewrite_marks.c
 *	  What a writer does for the rewrite of its table: it leaves the keys of the
 *	  rows it has written, in the same commit.
 *
 * A mark's key is the row's key and the transaction's id, so marks of two
 * transactions never meet, and the job that deletes the marks it has seen takes
 * away none of those that came since.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "utils/lsyscache.h"

#include "rewrite.h"
#include "store.h"

/* The catalog knows whether a table is being rewritten by the name of a hidden one. */
Oid
mer_rewrite_hidden(const char *kind, Oid relid)
{
	Oid			schema = get_namespace_oid("pg_meridian", true);
	char		name[NAMEDATALEN];

	if (!OidIsValid(schema))
		return InvalidOid;
	snprintf(name, sizeof(name), "%s_%u", kind, relid);
	return get_relname_relid(name, schema);
}

/* Storage id of the marks of a table's writers; 0 if nobody wants any. */
int64
mer_rewrite_marks_sid(Oid relid)
{
	Oid			marks = mer_rewrite_hidden("marks", relid);

	return OidIsValid(marks) ? mer_relmap_sid(marks, true) : 0;
}

static bool
is_written(MerEntry *e)
{
	MerVersion *v = mer_entry_newest(e);

	return v != NULL && (!v->tombstone || e->base_present);
}

static void
mark(MerBuf *buf)
{
	AttrNumber	attnum = 1;
	MerBuf	   *marks = mer_buf_get(buf->marks, InvalidOid, true);
	const MerShape *shape = mer_buf_shape(marks, &attnum, 1, 1);
	StringInfoData key;
	StringInfoData row;

	initStringInfo(&key);
	initStringInfo(&row);
	mp_put_array(&row, 1);
	mp_put_nil(&row);
	for (MerEntry *e = mer_entry_first(buf); e; e = mer_entry_next(e))
	{
		if (!is_written(e))
			continue;
		resetStringInfo(&key);
		appendBinaryStringInfo(&key, e->key, e->klen);
		appendBinaryStringInfo(&key, mer_commit_txid(), MER_TXID_BYTES);
		mer_buf_push(marks, key.data, key.len, row.data, row.len, shape,
					 FirstCommandId, false, true);
	}
	pfree(key.data);
	pfree(row.data);
}

/* Before the write set is shipped: what is in the buffers now is what changes. */
void
mer_rewrite_mark_writes(void)
{
	for (MerBuf *buf = mer_txn.first; buf; buf = buf->next)
		if (buf->marks != 0 && !mer_txn_dropped(buf->sid))
			mark(buf);
}
