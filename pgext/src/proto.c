/*
 * proto.c
 *	  The client side of the gateway protocol (docs/protocol.md): frames,
 *	  request ids, answers out of order.
 *
 * No server calls and no I/O of its own: everything goes through MerProtoOps.
 * wait and alloc may leave by longjmp, so the state is consistent before each
 * of these calls.  Requests under way are listed; an answer to any other id is
 * late and dropped.  Kept answers are bounded in number and in bytes.
 */
#include "proto.h"

/* First bytes of a body: array header, type, id; enough to know whose it is. */
#define HEAD_MAX_BYTES 16

void
mer_proto_init(MerProto *p, const MerProtoOps *ops, void *arg)
{
	memset(p, 0, offsetof(MerProto, buf));
	p->ops = ops;
	p->arg = arg;
}

uint32
mer_proto_next_id(MerProto *p)
{
	/* Stays a positive int32, so that it is never taken for a negative one. */
	p->next_id = p->next_id >= 0x7fffffff ? 1 : p->next_id + 1;
	return p->next_id;
}

void
mer_proto_begin(StringInfo buf, int type, uint32 id, int n_fields)
{
	Assert(buf->len == 0);
	if (buf->len + 4 >= buf->maxlen)
		enlargeStringInfo(buf, 4);
	buf->len += 4;
	mp_put_array(buf, (uint32) n_fields);
	mp_put_int(buf, type);
	mp_put_int(buf, id);
}

/* ---------- requests under way ---------- */

static MerPending *
find_pending(MerProto *p, uint32 id)
{
	int			i;

	/* Newest first: that is the one waited for, nearly always. */
	for (i = p->npending - 1; i >= 0; i--)
		if (p->pending[i].id == id)
			return &p->pending[i];
	return NULL;
}

static void
remove_pending(MerProto *p, MerPending *entry)
{
	int			i = (int) (entry - p->pending);

	if (entry->body != NULL)
	{
		p->kept_bytes -= entry->len;
		p->ops->release(p->arg, entry->body);
	}
	p->npending--;
	memmove(&p->pending[i], &p->pending[i + 1], sizeof(MerPending) * (p->npending - i));
}

/* Quiet entries are the first to make room: their silence means success. */
static bool
add_pending(MerProto *p, uint32 id, bool quiet)
{
	int			i;

	for (i = 0; p->npending == MER_PENDING_MAX && i < p->npending; i++)
		if (p->pending[i].quiet && p->pending[i].body == NULL)
			remove_pending(p, &p->pending[i]);
	if (p->npending == MER_PENDING_MAX)
		return false;
	p->pending[p->npending].id = id;
	p->pending[p->npending].quiet = quiet;
	p->pending[p->npending].body = NULL;
	p->pending[p->npending].len = 0;
	p->npending++;
	return true;
}

static void
drop_partial(MerProto *p)
{
	/* A buffer from alloc belongs to the caller that left; it may be gone. */
	if (p->partial != NULL && p->partial_kept)
	{
		p->kept_bytes -= p->partial_len;
		p->ops->release(p->arg, p->partial);
	}
	p->partial = NULL;
}

static MerStatus
lost(MerProto *p, MerStatus status, const char *why)
{
	mer_proto_close(p);
	p->why = why;
	return status;
}

void
mer_proto_close(MerProto *p)
{
	bool		was_connected = p->connected;

	p->connected = false;
	drop_partial(p);
	while (p->npending > 0)
		remove_pending(p, &p->pending[p->npending - 1]);
	p->skip_bytes = 0;
	p->sending = false;
	p->buf_start = p->buf_end = 0;
	if (was_connected)
		p->ops->close(p->arg);
}

MerStatus
mer_proto_connect(MerProto *p)
{
	Assert(!p->connected && p->npending == 0);
	if (!p->ops->connect(p->arg))
	{
		p->why = "cannot connect";
		return MER_LOST;
	}
	p->connected = true;
	return MER_OK;
}

/* ---------- receiving ---------- */

/* Read what there is into buf.  False: the stream is gone. */
static bool
fill(MerProto *p, size_t *got)
{
	int64		n;

	if (p->buf_start == p->buf_end)
		p->buf_start = p->buf_end = 0;
	else if (p->buf_start > 0)
	{
		memmove(p->buf, p->buf + p->buf_start, p->buf_end - p->buf_start);
		p->buf_end -= p->buf_start;
		p->buf_start = 0;
	}
	Assert(p->buf_end < MER_RECV_BUFFER_BYTES);
	n = p->ops->recv(p->arg, p->buf + p->buf_end, MER_RECV_BUFFER_BYTES - p->buf_end);
	if (n < 0)
		return false;
	p->buf_end += (uint32) n;
	*got = (size_t) n;
	return true;
}

/* Type and id of a body of which at least min(len, HEAD_MAX_BYTES) bytes are there. */
static bool
read_head(const char *body, uint32 len, int *type, uint32 *id, uint32 *offset)
{
	const unsigned char *b = (const unsigned char *) body;
	uint32		at;

	if (len < 3)
		return false;
	if ((b[0] & 0xf0) == 0x90)
		at = 1;
	else if (b[0] == 0xdc)
		at = 3;
	else
		return false;
	if (at + 2 > len || b[at] >= 0x80)
		return false;
	*type = b[at++];
	if (b[at] < 0x80)
		*id = b[at++];
	else if (b[at] == 0xcc && at + 2 <= len)
	{
		*id = b[at + 1];
		at += 2;
	}
	else if (b[at] == 0xcd && at + 3 <= len)
	{
		*id = ((uint32) b[at + 1] << 8) | b[at + 2];
		at += 3;
	}
	else if (b[at] == 0xce && at + 5 <= len)
	{
		*id = ((uint32) b[at + 1] << 24) | ((uint32) b[at + 2] << 16) |
			((uint32) b[at + 3] << 8) | b[at + 4];
		at += 5;
	}
	else
		return false;
	*offset = at;
	return true;
}

static bool
make_answer(char *body, uint32 len, MerAnswer *answer)
{
	uint32		id;
	uint32		offset;

	if (!read_head(body, len, &answer->type, &id, &offset))
		return false;
	answer->body = body;
	answer->len = len;
	answer->rest.p = body + offset;
	answer->rest.end = body + len;
	return true;
}

/* A whole body: hand it over if it is wanted, keep it if it is awaited. */
static MerStatus
deliver(MerProto *p, const char *body, uint32 len, uint32 id, uint32 wanted, MerAnswer *answer,
		bool *done)
{
	MerPending *entry = find_pending(p, id);
	char	   *copy;

	if (entry == NULL || entry->body != NULL)
		return MER_OK;			/* late, or answered twice: dropped */
	if (id == wanted)
	{
		copy = p->ops->alloc(p->arg, len);
		memcpy(copy, body, len);
		if (!make_answer(copy, len, answer))
			return MER_VIOLATION;
		remove_pending(p, entry);
		*done = true;
		return MER_OK;
	}
	if (p->kept_bytes + len > MER_KEPT_MAX_BYTES)
		return MER_VIOLATION;
	copy = p->ops->keep(p->arg, len);
	memcpy(copy, body, len);
	entry->body = copy;
	entry->len = len;
	p->kept_bytes += len;
	return MER_OK;
}

/* A frame too large for buf: receive it straight into its own memory. */
static MerStatus
start_partial(MerProto *p, uint32 len, uint32 id, uint32 wanted)
{
	MerPending *entry = find_pending(p, id);
	uint32		have = p->buf_end - p->buf_start - 4;
	char	   *space;

	if (entry == NULL || entry->body != NULL)
	{
		p->skip_bytes = len - have;
		p->buf_start = p->buf_end = 0;
		return MER_OK;
	}
	if (id != wanted && p->kept_bytes + len > MER_KEPT_MAX_BYTES)
		return MER_VIOLATION;
	space = id == wanted ? p->ops->alloc(p->arg, len) : p->ops->keep(p->arg, len);
	if (id != wanted)
		p->kept_bytes += len;
	p->partial_kept = id != wanted;
	memcpy(space, p->buf + p->buf_start + 4, have);
	p->buf_start = p->buf_end = 0;
	p->partial = space;
	p->partial_id = id;
	p->partial_len = len;
	p->partial_got = have;
	return MER_OK;
}

/*
 * The wait that asked for the frame being received has ended without it: its
 * memory may be gone, and the rest of the frame concerns nobody.
 */
static void
abandon_partial(MerProto *p, uint32 wanted)
{
	if (p->partial == NULL || p->partial_kept || p->partial_id == wanted)
		return;
	p->skip_bytes = p->partial_len - p->partial_got;
	p->partial = NULL;
}

/* Whole frames in buf, up to the wanted one. */
static MerStatus
parse(MerProto *p, uint32 wanted, MerAnswer *answer, bool *done)
{
	while (!*done && p->buf_end - p->buf_start >= 4)
	{
		const unsigned char *h = (const unsigned char *) p->buf + p->buf_start;
		uint32		len = h[0] | (uint32) h[1] << 8 | (uint32) h[2] << 16 | (uint32) h[3] << 24;
		uint32		have = p->buf_end - p->buf_start - 4;
		int			type;
		uint32		id;
		uint32		offset;
		MerStatus	status;

		if (len < 3 || len > MER_FRAME_SIZE_BYTES)
			return MER_VIOLATION;
		if (have < len && have < HEAD_MAX_BYTES)
			return MER_OK;
		if (have < len && len + 4 <= MER_RECV_BUFFER_BYTES)
			return MER_OK;
		if (!read_head((const char *) h + 4, have < len ? have : len, &type, &id, &offset))
			return MER_VIOLATION;
		if (have < len)
			return start_partial(p, len, id, wanted);
		status = deliver(p, (const char *) h + 4, len, id, wanted, answer, done);
		p->buf_start += 4 + len;
		if (status != MER_OK)
			return status;
	}
	return MER_OK;
}

static MerStatus
finish_partial(MerProto *p, uint32 wanted, MerAnswer *answer, bool *done)
{
	MerPending *entry = find_pending(p, p->partial_id);
	char	   *body = p->partial;

	if (entry == NULL || p->partial_kept)
	{
		if (entry == NULL)
			drop_partial(p);
		else
		{
			entry->body = body;
			entry->len = p->partial_len;
		}
		p->partial = NULL;
		return MER_OK;
	}
	Assert(p->partial_id == wanted);
	p->partial = NULL;
	if (!make_answer(body, p->partial_len, answer))
		return MER_VIOLATION;
	remove_pending(p, entry);
	*done = true;
	return MER_OK;
}

/* One recv and what follows from it.  *got = 0: nothing to read now. */
static MerStatus
receive(MerProto *p, uint32 wanted, MerAnswer *answer, bool *done, size_t *got)
{
	int64		n;

	*got = 0;
	abandon_partial(p, wanted);
	if (p->partial != NULL)
	{
		n = p->ops->recv(p->arg, p->partial + p->partial_got, p->partial_len - p->partial_got);
		if (n < 0)
			return MER_LOST;
		p->partial_got += (uint32) n;
		*got = (size_t) n;
		if (p->partial_got == p->partial_len)
			return finish_partial(p, wanted, answer, done);
		return MER_OK;
	}
	if (!fill(p, got))
		return MER_LOST;
	if (p->skip_bytes > 0)
	{
		size_t		skip = p->buf_end - p->buf_start;

		if (skip > p->skip_bytes)
			skip = p->skip_bytes;
		p->buf_start += (uint32) skip;
		p->skip_bytes -= skip;
		if (p->skip_bytes > 0)
			return MER_OK;
	}
	return parse(p, wanted, answer, done);
}

static MerStatus
ended(MerProto *p, MerStatus status)
{
	if (status == MER_LOST)
		return lost(p, status, "connection closed");
	return lost(p, status, "malformed answer");
}

bool
mer_proto_alive(MerProto *p)
{
	bool		done = false;
	size_t		got;
	MerStatus	status;

	if (!p->connected)
		return false;
	do
	{
		status = receive(p, 0, NULL, &done, &got);
		if (status != MER_OK)
		{
			ended(p, status);
			return false;
		}
	} while (got > 0);
	return true;
}

static int64
time_left(MerProto *p, int64 deadline_ms)
{
	int64		left;

	if (deadline_ms == MER_NO_DEADLINE)
		return -1;
	left = deadline_ms - p->ops->now_ms(p->arg);
	return left > 0 ? left : 0;
}

static bool
kept_answer(MerProto *p, uint32 id, MerAnswer *answer)
{
	MerPending *entry = find_pending(p, id);
	char	   *copy;

	if (entry == NULL || entry->body == NULL)
		return false;
	copy = p->ops->alloc(p->arg, entry->len);
	memcpy(copy, entry->body, entry->len);
	if (!make_answer(copy, entry->len, answer))
		return false;
	remove_pending(p, entry);
	return true;
}

MerStatus
mer_proto_wait(MerProto *p, uint32 id, int64 deadline_ms, MerAnswer *answer)
{
	bool		done = false;
	MerStatus	status;
	size_t		got;

	if (!p->connected)
		return MER_LOST;
	if (kept_answer(p, id, answer))
		return MER_OK;
	Assert(find_pending(p, id) != NULL);
	status = parse(p, id, answer, &done);
	if (status != MER_OK)
		return ended(p, status);
	while (!done)
	{
		/* Waiting first costs no more than finding out that there is nothing yet. */
		if (p->ops->wait(p->arg, MER_IO_READ, time_left(p, deadline_ms)) == 0 &&
			time_left(p, deadline_ms) == 0)
			return MER_TIMEOUT;
		do
		{
			status = receive(p, id, answer, &done, &got);
			if (status != MER_OK)
				return ended(p, status);
		} while (!done && got > 0 && p->partial != NULL);
	}
	return MER_OK;
}

/*
 * Send the rest of a frame.  While the stream takes nothing, answers are read,
 * or two full socket buffers would wait for each other.
 */
static MerStatus
send_all(MerProto *p, const char *data, size_t len, int64 deadline_ms)
{
	size_t		sent = 0;

	while (sent < len)
	{
		int64		n = p->ops->send(p->arg, data + sent, len - sent);
		int			ready;

		if (n < 0)
			return lost(p, MER_LOST, "connection closed");
		sent += (size_t) n;
		if (n > 0)
			continue;

		/* A frame sent in part cannot be taken back: leaving here ends the stream. */
		p->sending = sent > 0;
		ready = p->ops->wait(p->arg, MER_IO_READ | MER_IO_WRITE, time_left(p, deadline_ms));
		p->sending = false;
		if (ready & MER_IO_READ)
		{
			bool		done = false;
			size_t		got;
			MerStatus	status = receive(p, 0, NULL, &done, &got);

			if (status != MER_OK)
				return ended(p, status);
		}
		if (ready == 0 && time_left(p, deadline_ms) == 0)
			return lost(p, MER_TIMEOUT, "the gateway takes no requests");
	}
	return MER_OK;
}

MerStatus
mer_proto_send(MerProto *p, StringInfo buf, int64 deadline_ms)
{
	uint32		len = (uint32) buf->len - 4;
	unsigned char *h = (unsigned char *) buf->data;
	int			type;
	uint32		id;
	uint32		offset;

	if (len > MER_FRAME_SIZE_BYTES)
		return MER_TOO_LARGE;
	if (p->sending)
		mer_proto_close(p);
	if (!p->connected)
		return MER_LOST;
	abandon_partial(p, 0);
	h[0] = (unsigned char) len;
	h[1] = (unsigned char) (len >> 8);
	h[2] = (unsigned char) (len >> 16);
	h[3] = (unsigned char) (len >> 24);
	if (!read_head(buf->data + 4, len, &type, &id, &offset))
		return MER_VIOLATION;
	if (type != MER_CANCEL && !add_pending(p, id, type == MER_PART))
		return MER_TOO_MANY;
	return send_all(p, buf->data, (size_t) len + 4, deadline_ms);
}

bool
mer_proto_refused(MerProto *p, MerAnswer *answer)
{
	int			i;

	for (i = 0; i < p->npending; i++)
		if (p->pending[i].quiet && p->pending[i].body != NULL)
			return kept_answer(p, p->pending[i].id, answer);
	return false;
}

/* Too small to be worth a wait: if the stream does not take it, nobody is told. */
static void
send_cancel(MerProto *p, uint32 id)
{
	unsigned char frame[4 + 8] = {0};
	uint32		len = 0;

	frame[4 + len++] = 0x93;
	frame[4 + len++] = MER_CANCEL;
	frame[4 + len++] = 0;
	frame[4 + len++] = 0xce;
	frame[4 + len++] = (unsigned char) (id >> 24);
	frame[4 + len++] = (unsigned char) (id >> 16);
	frame[4 + len++] = (unsigned char) (id >> 8);
	frame[4 + len++] = (unsigned char) id;
	frame[0] = (unsigned char) len;
	if (p->ops->send(p->arg, (const char *) frame, 4 + len) != 4 + len)
		mer_proto_close(p);
}

void
mer_proto_cancel(MerProto *p, uint32 id)
{
	MerPending *entry = find_pending(p, id);

	if (entry != NULL && entry->body == NULL && p->connected)
		send_cancel(p, id);
}

void
mer_proto_forget(MerProto *p, uint32 id)
{
	MerPending *entry = find_pending(p, id);
	bool		running;

	if (entry == NULL)
		return;
	running = entry->body == NULL && !entry->quiet;
	remove_pending(p, entry);
	abandon_partial(p, 0);
	if (running && p->connected)
		send_cancel(p, id);
}

void
mer_proto_forget_all(MerProto *p)
{
	/* Left in the middle of a send: what the gateway holds is half a frame. */
	if (p->sending)
		mer_proto_close(p);
	while (p->npending > 0)
		mer_proto_forget(p, p->pending[p->npending - 1].id);
	abandon_partial(p, 0);
}
