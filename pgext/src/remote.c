/*
 * remote.c
 *	  Read requests to the gateway, and pages of rows that come back.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "coherence.h"
#include "store.h"

#define REQUEST_BYTES 256		/* of most requests: fits the first block of a small context */

int
mer_bytes_cmp(const void *a, const void *b)
{
	const MerBytes *x = a;
	const MerBytes *y = b;

	return mer_key_cmp(x->data, x->len, y->data, y->len);
}

static void
put_cols(StringInfo buf, const AttrNumber *cols, int ncols)
{
	mp_put_array(buf, ncols);
	for (int i = 0; i < ncols; i++)
		mp_put_int(buf, cols[i]);
}

static void
put_filter(StringInfo buf, const char *filter, uint32 len)
{
	if (filter)
		appendBinaryStringInfo(buf, filter, len);
	else
		mp_put_nil(buf);
}

uint32
mer_send_scan(const MerRequest *req)
{
	StringInfoData buf;
	uint32		id;
	bool		joined = req->row_sid != 0;

	mer_checks_flush();
	initStringInfoExt(&buf, REQUEST_BYTES);
	id = mer_wire_begin(&buf, MER_SCAN, 17);
	mp_put_int(&buf, req->any_version ? 0 : mer_catver());
	mp_put_int(&buf, mer_txn.tau);
	mp_put_int(&buf, req->sid);
	mp_put_bin(&buf, req->lo ? req->lo : "", req->lo ? req->lo_len : 0);
	if (req->hi)
		mp_put_bin(&buf, req->hi, req->hi_len);
	else
		mp_put_nil(&buf);
	mp_put_int(&buf, (req->descending ? 1 : 0) | (req->lo_exclusive ? 2 : 0));
	put_cols(&buf, req->cols, req->ncols);
	put_filter(&buf, joined ? NULL : req->filter, req->filter_len);
	mp_put_int(&buf, req->limit);
	mp_put_int(&buf, req->page_bytes);
	mp_put_int(&buf, req->row_sid);
	put_cols(&buf, req->row_cols, req->nrow_cols);
	put_filter(&buf, joined ? req->filter : NULL, req->filter_len);
	mp_put_nil(&buf);
	mp_put_nil(&buf);
	mer_wire_send(&buf);
	pfree(buf.data);
	return id;
}

uint32
mer_send_get(int64 sid, const AttrNumber *cols, int ncols, const MerBytes *keys, int nkeys)
{
	StringInfoData buf;
	uint32		id;

	initStringInfoExt(&buf, REQUEST_BYTES);
	id = mer_wire_begin(&buf, MER_GET, 7);
	mp_put_int(&buf, mer_catver());
	mp_put_int(&buf, mer_txn.tau);
	mp_put_int(&buf, sid);
	put_cols(&buf, cols, ncols);
	mp_put_array(&buf, nkeys);
	for (int i = 0; i < nkeys; i++)
		mp_put_bin(&buf, keys[i].data, keys[i].len);
	mer_wire_send(&buf);
	pfree(buf.data);
	return id;
}

/* The page is palloc'd in the current context. */
MerPage *
mer_page_wait(uint32 id, int nvalues, bool joined, bool reversed)
{
	MerPage    *page = palloc0(sizeof(MerPage));

	page->reply = mer_wire_wait(id);
	if (page->reply.type != MER_RESULT)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("unexpected answer %d to a read", page->reply.type)));
	mer_txn_saw_tau(mp_get_int(&page->reply.body));
	page->more = mp_get_bool(&page->reply.body);
	page->nrows = mp_get_array(&page->reply.body);
	page->joined = joined;
	page->reversed = reversed;
	page->nvalues = nvalues;
	if (page->nrows > 0)
		page->rows = palloc(page->nrows * sizeof(MerRowRef));
	mer_counters.rows += page->nrows;
	return page;
}

void
mer_page_free(MerPage *page)
{
	if (page->rows)
		pfree(page->rows);
	pfree(page->reply.frame);
	pfree(page);
}

/* Merging relies on the order: a page that breaks it must not be believed. */
static void
check_order(MerPage *page, MerRowRef *ref)
{
	MerRowRef  *prev = ref - 1;
	int			c;

	if (page->nparsed == 0)
		return;
	c = mer_key_cmp(prev->key, prev->klen, ref->key, ref->klen);
	if (page->reversed ? c <= 0 : c >= 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("gateway answered rows out of order")));
}

static void
parse_next(MerPage *page)
{
	MpReader   *r = &page->reply.body;
	MerRowRef  *ref = &page->rows[page->nparsed];

	if (page->nparsed > 0)
	{
		MerRowRef  *prev = ref - 1;

		if (prev->end == NULL)
		{
			r->p = prev->values;
			for (uint32 i = 0; i < page->nvalues; i++)
				mp_skip(r);
			prev->end = r->p;
		}
		r->p = prev->end;
	}
	if (page->nparsed == page->nrows)
		elog(ERROR, "meridian: row beyond the end of a page");
	if (mp_get_array(r) != page->nvalues + (page->joined ? 2 : 1))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("row of an answer has the wrong number of values")));
	ref->key = mp_get_bytes(r, &ref->klen);
	check_order(page, ref);
	if (page->joined)
		ref->rowkey = mp_get_bytes(r, &ref->rowklen);
	else
		ref->rowkey = NULL;
	ref->values = r->p;
	ref->end = NULL;
	page->nparsed++;
}

MerRowRef *
mer_page_row(MerPage *page, uint32 i)
{
	uint32		at = page->reversed ? page->nrows - 1 - i : i;

	while (page->nparsed <= at)
		parse_next(page);
	return &page->rows[at];
}

void
mer_version_fetch(MerVersion *version, Relation rel)
{
	MerRel	   *mr = mer_rel(rel);
	MerBuf	   *buf = mer_buf_get(mr->sid, mr->relid, false);
	AttrNumber	attnums[MaxHeapAttributeNumber];
	const MerShape *shape;
	MerBytes	key = {version->key, version->klen};
	MerPage    *page;
	MerRowRef  *ref;
	StringInfoData row;
	int			n = 0;
	int			natts = mer_txn_stored_natts(mr->sid, mr->natts);

	if (version->sid != mr->sid)
		elog(ERROR, "meridian: row version belongs to another relation");
	for (int i = 0; i < natts; i++)
		if (!mr->cols[i].dropped)
			attnums[n++] = i + 1;
	shape = mer_buf_shape(buf, attnums, n, natts);
	mer_checks_flush();
	page = mer_page_wait(mer_send_get(mr->sid, attnums, n, &key, 1), n, false, false);
	if (page->nrows != 1)
		elog(ERROR, "meridian: row version is not in storage any more");
	ref = mer_page_row(page, 0);
	initStringInfo(&row);
	mp_put_array(&row, n);
	appendBinaryStringInfo(&row, ref->values, page->reply.body.end - ref->values);
	(void) mer_tid_stored(version->sid, version->key, version->klen,
						  row.data, row.len, shape);
	pfree(row.data);
	mer_page_free(page);
}
