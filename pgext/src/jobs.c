/*
 * jobs.c
 *	  Rows of background jobs in system relation 3: read, written, named.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "jobs.h"
#include "wire.h"

#define PEEK_TIMEOUT_MS 5000
#define PAGE_BYTES (1024 * 1024)

static const char alphabet[] = "abcdefghijklmnopqrstuvwxyz234567";

/* ---------- fields ---------- */

void
mer_job_set_bytes(MerJob *job, MerJobField field, const char *data, uint32 len)
{
	char	   *copy = palloc(len + 1);

	memcpy(copy, data, len);
	copy[len] = '\0';
	job->field[field].data = copy;
	job->field[field].len = len;
}

void
mer_job_set(MerJob *job, MerJobField field, const char *text)
{
	mer_job_set_bytes(job, field, text ? text : "", text ? strlen(text) : 0);
}

void
mer_job_set_int(MerJob *job, MerJobField field, int64 value)
{
	mer_job_set(job, field, psprintf(INT64_FORMAT, value));
}

int64
mer_job_int(const MerJob *job, MerJobField field)
{
	return strtoll(job->field[field].data, NULL, 10);
}

bool
mer_job_is(const MerJob *job, MerJobField field, const char *text)
{
	return strcmp(job->field[field].data, text) == 0;
}

bool
mer_job_finished(const MerJob *job)
{
	return mer_job_is(job, JOB_STATUS, "completed") || mer_job_is(job, JOB_STATUS, "failed") ||
		mer_job_is(job, JOB_STATUS, "cancelled");
}

List *
mer_job_targets(const MerJob *job)
{
	List	   *oids = NIL;
	const char *p = job->field[JOB_TARGETS].data;
	char	   *end;

	while (*p)
	{
		oids = lappend_oid(oids, (Oid) strtoul(p, &end, 10));
		p = *end == ',' ? end + 1 : end;
	}
	return oids;
}

/* ---------- ids ---------- */

/* 16 random bytes in base 32: 26 characters of 5 bits, the last of 3. */
static void
new_id(char *id)
{
	uint8		raw[16];
	uint32		bits = 0;
	int			nbits = 0;
	int			n = 0;

	if (!pg_strong_random(raw, sizeof(raw)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate a job id")));
	for (int i = 0; i < (int) sizeof(raw); i++)
	{
		bits = bits << 8 | raw[i];
		for (nbits += 8; nbits >= 5; nbits -= 5)
			id[n++] = alphabet[(bits >> (nbits - 5)) & 31];
	}
	id[n++] = alphabet[(bits << (5 - nbits)) & 31];
	id[n] = '\0';
	Assert(n == MER_JOB_ID_CHARS);
}

void
mer_job_check_id(const char *id)
{
	if (strlen(id) != MER_JOB_ID_CHARS || strspn(id, alphabet) != MER_JOB_ID_CHARS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("Unable to convert text to UUID"),
				 errdetail("A job id has %d characters: a-z and 2-7.", MER_JOB_ID_CHARS)));
}

void
mer_job_init(MerJob *job, const char *type)
{
	new_id(job->id);
	for (int i = 0; i < JOB_FIELDS; i++)
		mer_job_set(job, i, "");
	mer_job_set(job, JOB_STATUS, "submitted");
	mer_job_set(job, JOB_TYPE, type);
	mer_job_set(job, JOB_PHASE, "build");
	mer_job_set_int(job, JOB_OWNER, GetUserId());
	mer_job_set_int(job, JOB_AT, 0);
	mer_job_set_int(job, JOB_ROWS_DONE, 0);
	mer_job_set_int(job, JOB_START, GetCurrentTimestamp());
}

/* ---------- writing ---------- */

static MerVersion *
push(const char *id, StringInfo row, bool base_present)
{
	AttrNumber	attnums[JOB_FIELDS];
	MerBuf	   *buf = mer_buf_get(MER_JOB_SID, InvalidOid, false);

	for (int i = 0; i < JOB_FIELDS; i++)
		attnums[i] = i + 1;
	return mer_buf_push(buf, id, MER_JOB_ID_CHARS, row ? row->data : NULL, row ? row->len : 0,
						row ? mer_buf_shape(buf, attnums, JOB_FIELDS, JOB_FIELDS) : NULL,
						GetCurrentCommandId(false), base_present, false);
}

void
mer_job_put(MerJob *job, bool is_new)
{
	StringInfoData row;
	bool		big = false;

	mer_job_set_int(job, JOB_UPDATE, GetCurrentTimestamp());
	initStringInfo(&row);
	mp_put_array(&row, JOB_FIELDS);
	for (int i = 0; i < JOB_FIELDS; i++)
	{
		mp_put_bin(&row, job->field[i].data, job->field[i].len);
		big = big || job->field[i].len > MER_BIG_BYTES;
	}
	push(job->id, &row, !is_new)->has_big = big;
	pfree(row.data);
}

void
mer_job_delete(const char *id)
{
	(void) push(id, NULL, true);
}

/* ---------- reading ---------- */

static void
put_columns(StringInfo buf)
{
	mp_put_array(buf, JOB_FIELDS);
	for (int i = 0; i < JOB_FIELDS; i++)
		mp_put_int(buf, i + 1);
}

/* A row of an answer: [k, column...] */
static void
read_row(MpReader *r, MerJob *job)
{
	uint32		len;
	const char *data;

	if (mp_get_array(r) != JOB_FIELDS + 1)
		mp_malformed("a job has another number of columns");
	data = mp_get_bytes(r, &len);
	if (len != MER_JOB_ID_CHARS)
		mp_malformed("a job id has another length");
	memcpy(job->id, data, len);
	job->id[len] = '\0';
	for (int i = 0; i < JOB_FIELDS; i++)
	{
		data = mp_get_bytes(r, &len);
		mer_job_set_bytes(job, i, data, len);
	}
}

bool
mer_job_get(const char *id, MerJob *job)
{
	AttrNumber	attnums[JOB_FIELDS];
	MerBytes	key = {id, MER_JOB_ID_CHARS};
	MerPage    *page;
	bool		found;

	for (int i = 0; i < JOB_FIELDS; i++)
		attnums[i] = i + 1;
	page = mer_page_wait(mer_send_get(MER_JOB_SID, attnums, JOB_FIELDS, &key, 1),
						 JOB_FIELDS, false, false);
	found = page->nrows == 1;
	if (found)
		read_row(&page->reply.body, job);
	mer_page_free(page);
	return found;
}

MerStatus
mer_job_peek(const char *id, MerJob *job, bool *found)
{
	StringInfoData buf;
	MerReply	reply;
	MerStatus	status;
	uint32		request = 0;
	uint32		n;

	*found = false;
	HOLD_INTERRUPTS();
	initStringInfo(&buf);
	if (!mer_wire_connected() && mer_wire_try_reconnect(PEEK_TIMEOUT_MS) != MER_OK)
		status = MER_LOST;
	else
	{
		request = mer_wire_begin(&buf, MER_GET, 7);
		mp_put_int(&buf, 0);
		mp_put_int(&buf, 0);
		mp_put_int(&buf, MER_JOB_SID);
		put_columns(&buf);
		mp_put_array(&buf, 1);
		mp_put_bin(&buf, id, MER_JOB_ID_CHARS);
		status = mer_wire_try_call(&buf, request, PEEK_TIMEOUT_MS, &reply);
	}
	if (status == MER_TIMEOUT)
		mer_wire_forget(request);
	if (status == MER_OK && reply.type != MER_RESULT)
		status = MER_LOST;
	if (status == MER_OK)
	{
		(void) mp_get_int(&reply.body);
		(void) mp_get_bool(&reply.body);
		n = mp_get_array(&reply.body);
		*found = n == 1;
		if (n == 1)
			read_row(&reply.body, job);
		pfree(reply.frame);
	}
	pfree(buf.data);
	RESUME_INTERRUPTS();
	return status;
}

void
mer_job_peek_existing(const char *id, MerJob *job)
{
	bool		found;

	if (mer_job_peek(id, job, &found) != MER_OK)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("the gateway is not reachable")));
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job \"%s\" does not exist", id)));
}

/* Jobs behind a key, as of now; true if there may be more. */
static bool
read_page(const char *after, List **jobs)
{
	StringInfoData buf;
	MerReply	reply;
	uint32		id;
	uint32		n;
	bool		more;

	initStringInfo(&buf);
	id = mer_wire_begin(&buf, MER_SCAN, 17);
	mp_put_int(&buf, 0);
	mp_put_int(&buf, 0);
	mp_put_int(&buf, MER_JOB_SID);
	mp_put_bin(&buf, after, strlen(after));
	mp_put_nil(&buf);
	mp_put_int(&buf, *after ? 2 : 0);
	put_columns(&buf);
	mp_put_nil(&buf);
	mp_put_int(&buf, 0);
	mp_put_int(&buf, PAGE_BYTES);
	mp_put_int(&buf, 0);
	mp_put_array(&buf, 0);
	mp_put_nil(&buf);
	mp_put_nil(&buf);
	mp_put_nil(&buf);
	reply = mer_wire_call(&buf, id);
	pfree(buf.data);
	if (reply.type != MER_RESULT)
		mp_malformed("unexpected answer to a scan of jobs");
	(void) mp_get_int(&reply.body);
	more = mp_get_bool(&reply.body);
	n = mp_get_array(&reply.body);
	for (uint32 i = 0; i < n; i++)
	{
		MerJob	   *job = palloc(sizeof(MerJob));

		read_row(&reply.body, job);
		*jobs = lappend(*jobs, job);
	}
	pfree(reply.frame);
	return more && n > 0;
}

List *
mer_job_list(void)
{
	List	   *jobs = NIL;

	while (read_page(jobs ? ((MerJob *) llast(jobs))->id : "", &jobs))
		CHECK_FOR_INTERRUPTS();
	return jobs;
}
