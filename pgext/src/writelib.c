/*
 * writelib.c
 *	  The write buffer, the encoder of write sets and the commit frames for a
 *	  program that is no server: the query processors of the simulation.
 *
 * One transaction at a time.  Every call that may fail returns -1 then, and
 * merw_why says why; the transaction must be begun anew.
 */
#include "postgres.h"

#include <setjmp.h>

#include "utils/memutils.h"

#include "store.h"
#include "wire.h"
#include "writelib.h"

#define EXPORT extern __attribute__((visibility("default")))

EXPORT int	merw_begin(int64 tau);
EXPORT int	merw_write(int64 sid, int flags, const char *key, uint32 klen,
					   const char *values, const uint32 *lens, const int16 *attnums,
					   int nvalues, uint32 cid);
EXPORT int	merw_lock(int64 sid, const char *key, uint32 klen, int mode);
EXPORT int	merw_check(int64 sid, const char *key, uint32 klen);
EXPORT int	merw_schema(const char *op, uint32 len);
EXPORT int	merw_savepoint(uint32 id);
EXPORT int	merw_rollback(uint32 id);
EXPORT int	merw_release(uint32 id);
EXPORT int	merw_visible(int64 sid, const char *key, uint32 klen, uint64 cid_limit,
						 const char **row, uint32 *len);
EXPORT int64 merw_size(void);
EXPORT int	merw_commit(const char *txid, int64 catver, uint64 chunk_bytes);
EXPORT int	merw_status(const char *txid, int64 tau);
EXPORT const char *merw_sent(uint64 *len);
EXPORT int	merw_answer(const char *frames, uint64 len, uint64 step, int64 *value);
EXPORT uint64 merw_hash(int64 sid, int kind, const char *key, uint32 len);
EXPORT const char *merw_why(void);

#define WRITE_BASE_PRESENT 1
#define WRITE_BLIND 2
#define WRITE_IDENTITY 4
#define WRITE_INDEX 8
#define WRITE_HIDDEN 16
#define WRITE_DELETE 32

static sigjmp_buf failed;
static const char *reason = "";

void
merw_fail(const char *why)
{
	reason = why;
	siglongjmp(failed, 1);
}

const char *
merw_why(void)
{
	return reason;
}

#define GUARD() \
	do { \
		if (sigsetjmp(failed, 0) != 0) \
			return -1; \
	} while (0)

int
merw_begin(int64 tau)
{
	GUARD();
	CurrentMemoryContext = TopMemoryContext;
	if (mer_txn.active)
		MemoryContextDelete(mer_txn.cxt);
	mer_undo_reset();
	mer_locks_reset();
	TopTransactionContext = TopMemoryContext;
	mer_txn_start();
	TopTransactionContext = mer_txn.cxt;
	mer_txn.tau = tau;
	return 0;
}

/* A row of bin values; they follow one another in `values`. */
static bool
put_row(StringInfo row, const char *values, const uint32 *lens, int nvalues)
{
	bool		big = false;

	initStringInfo(row);
	mp_put_array(row, nvalues);
	for (int i = 0; i < nvalues; i++)
	{
		mp_put_bin(row, values, lens[i]);
		values += lens[i];
		big |= lens[i] > MER_BIG_BYTES;
	}
	return big;
}

static void
write_row(int64 sid, int flags, const char *key, uint32 klen, const char *values,
		  const uint32 *lens, const int16 *attnums, int nvalues, uint32 cid)
{
	MerBuf	   *buf = mer_buf_get(sid, InvalidOid, (flags & WRITE_INDEX) != 0);
	bool		deletes = (flags & WRITE_DELETE) != 0;
	StringInfoData row = {0};
	const MerShape *shape = NULL;
	MerVersion *v;
	bool		big = false;

	buf->hidden = (flags & WRITE_HIDDEN) != 0;
	if (!deletes)
	{
		big = put_row(&row, values, lens, nvalues);
		shape = mer_buf_shape(buf, attnums, nvalues, attnums[nvalues - 1]);
	}
	v = mer_buf_push(buf, key, klen, row.data, row.len, shape, cid,
					 (flags & WRITE_BASE_PRESENT) != 0, (flags & WRITE_BLIND) != 0);
	v->has_big = big;
	if (flags & WRITE_IDENTITY)
		v->entry->identity = true;
	if (row.data)
		pfree(row.data);
}

int
merw_write(int64 sid, int flags, const char *key, uint32 klen, const char *values,
		   const uint32 *lens, const int16 *attnums, int nvalues, uint32 cid)
{
	GUARD();
	write_row(sid, flags, key, klen, values, lens, attnums, nvalues, cid);
	return 0;
}

int
merw_lock(int64 sid, const char *key, uint32 klen, int mode)
{
	GUARD();
	mer_lock_row(sid, key, klen, (LockTupleMode) mode);
	return 0;
}

int
merw_check(int64 sid, const char *key, uint32 klen)
{
	GUARD();
	mer_check_row(sid, key, klen);
	return 0;
}

int
merw_schema(const char *op, uint32 len)
{
	GUARD();
	mer_txn_schema_op(op, len);
	return 0;
}

int
merw_savepoint(uint32 id)
{
	GUARD();
	mer_savepoint(id);
	return 0;
}

int
merw_rollback(uint32 id)
{
	GUARD();
	mer_savepoint_rollback(id);
	return 0;
}

int
merw_release(uint32 id)
{
	GUARD();
	mer_savepoint_release(id);
	return 0;
}

/* 0: what is stored shows; 1: a row of the transaction; 2: it deleted the row. */
int
merw_visible(int64 sid, const char *key, uint32 klen, uint64 cid_limit, const char **row,
			 uint32 *len)
{
	MerBuf	   *buf = mer_buf_find(sid);
	MerEntry   *entry = buf ? mer_entry_find(buf, key, klen) : NULL;
	MerVersion *v = entry ? mer_entry_visible(entry, cid_limit) : NULL;

	if (v == NULL)
		return 0;
	if (v->tombstone)
		return 2;
	*row = v->row;
	*len = v->rowlen;
	return 1;
}

int64
merw_size(void)
{
	return (int64) mer_encoded_size();
}

uint64
merw_hash(int64 sid, int kind, const char *key, uint32 len)
{
	return mer_conflict_hash(sid, kind, key, len);
}

/* ---------- the gateway's socket: two strings ---------- */

static StringInfoData sent;
static const char *inbound;
static uint64 inbound_len;
static uint64 inbound_step;

static bool
stream_connect(void *arg)
{
	return true;
}

static void
stream_close(void *arg)
{
}

static int64
stream_send(void *arg, const char *data, size_t len)
{
	appendBinaryStringInfo(&sent, data, (int) len);
	return (int64) len;
}

static int64
stream_recv(void *arg, char *data, size_t len)
{
	uint64		n = Min((uint64) len, Min(inbound_len, inbound_step));

	if (n == 0)
		return -1;
	memcpy(data, inbound, n);
	inbound += n;
	inbound_len -= n;
	return (int64) n;
}

static int
stream_wait(void *arg, int events, int64 timeout_ms)
{
	return events;
}

static int64
stream_now_ms(void *arg)
{
	return 0;
}

static void *
stream_alloc(void *arg, size_t len)
{
	return MemoryContextAlloc(TopMemoryContext, len);
}

static void
stream_release(void *arg, void *chunk)
{
	pfree(chunk);
}

static const MerProtoOps stream = {
	stream_connect, stream_close, stream_send, stream_recv, stream_wait,
	stream_now_ms, stream_alloc, stream_alloc, stream_release
};
static MerProto proto;
static const char *commit_txid;
static int64 commit_catver;
static uint32 parts;
static uint32 request_id;

static void
send_frame(StringInfo buf)
{
	MerStatus	status = mer_proto_send(&proto, buf, MER_NO_DEADLINE);

	pfree(buf->data);
	if (status != MER_OK)
		merw_fail("the frame was not sent");
}

/* Frames that the last call sent are forgotten; a request has the stream for itself. */
static void
start_stream(void)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	if (sent.data == NULL)
		initStringInfo(&sent);
	resetStringInfo(&sent);
	MemoryContextSwitchTo(old);
	if (proto.ops != NULL)
		mer_proto_close(&proto);
	mer_proto_init(&proto, &stream, NULL);
	if (mer_proto_connect(&proto) != MER_OK)
		merw_fail("not connected");
}

static void
sink(StringInfo chunk, bool last)
{
	StringInfoData buf;

	initStringInfo(&buf);
	request_id = mer_proto_next_id(&proto);
	if (last)
		mer_frame_commit(&buf, request_id, commit_txid, commit_catver, parts, chunk);
	else
		mer_frame_part(&buf, request_id, commit_txid, parts++, chunk, mer_txn.tau);
	send_frame(&buf);
}

/* The number of frames that merw_sent has then. */
int
merw_commit(const char *txid, int64 catver, uint64 chunk_bytes)
{
	GUARD();
	start_stream();
	commit_txid = txid;
	commit_catver = catver;
	parts = 0;
	(void) mer_encode(sink, chunk_bytes);
	return (int) parts + 1;
}

int
merw_status(const char *txid, int64 tau)
{
	StringInfoData buf;

	GUARD();
	start_stream();
	initStringInfo(&buf);
	request_id = mer_proto_next_id(&proto);
	mer_frame_status(&buf, request_id, txid, tau);
	send_frame(&buf);
	return 1;
}

const char *
merw_sent(uint64 *len)
{
	*len = sent.len;
	return sent.data;
}

/*
 * Frames of the gateway, which arrive at most `step` bytes at a time.  The type
 * of the answer to the last request; value: tau, outcome or SQLSTATE.
 */
int
merw_answer(const char *frames, uint64 len, uint64 step, int64 *value)
{
	MerAnswer	answer;
	MerStatus	status;

	GUARD();
	inbound = frames;
	inbound_len = len;
	inbound_step = step;
	status = mer_proto_wait(&proto, request_id, MER_NO_DEADLINE, &answer);
	if (status != MER_OK)
		merw_fail(proto.why ? proto.why : "no answer");
	if (answer.type == MER_ERROR)
	{
		MerReply	reply = {.type = answer.type,.body = answer.rest,.frame = answer.body};

		*value = mer_wire_sqlstate(&reply);
	}
	else
		*value = mp_get_int(&answer.rest);
	pfree(answer.body);
	return answer.type;
}
