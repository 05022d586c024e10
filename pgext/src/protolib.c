/*
 * protolib.c
 *	  What proto.c and msgpack.c need where there is no server: only linked
 *	  into the library that tests load.
 */
#include "proto.h"

extern MerProto *merlib_new(const MerProtoOps *ops, void *arg);
extern void merlib_free(MerProto *p);
extern MerStatus merlib_send(MerProto *p, int type, uint32 id, const char *fields, size_t len,
							 int n_fields, int64 deadline_ms);
extern int	merlib_skip(const char *data, size_t len, size_t *used);
extern int	merlib_int(const char *data, size_t len, int64 *value);
extern size_t merlib_put_int(int64 v, char *out);
extern size_t merlib_put_bin(const char *data, size_t len, char *out, int as_str);
extern const char *merlib_why(const MerProto *p);
extern int	merlib_pending(const MerProto *p);
extern bool merlib_connected(const MerProto *p);

static jmp_buf malformed_jump;

void
mp_malformed(const char *why)
{
	(void) why;
	longjmp(malformed_jump, 1);
}

void
enlargeStringInfo(StringInfo buf, int needed)
{
	int			wanted = buf->len + needed + 1;

	if (wanted <= buf->maxlen)
		return;
	if (wanted < 2 * buf->maxlen)
		wanted = 2 * buf->maxlen;
	buf->data = realloc(buf->data, (size_t) wanted);
	if (buf->data == NULL)
		abort();
	buf->maxlen = wanted;
}

MerProto *
merlib_new(const MerProtoOps *ops, void *arg)
{
	MerProto   *p = malloc(sizeof(MerProto));

	mer_proto_init(p, ops, arg);
	return p;
}

void
merlib_free(MerProto *p)
{
	mer_proto_close(p);
	free(p);
}

MerStatus
merlib_send(MerProto *p, int type, uint32 id, const char *fields, size_t len, int n_fields,
			int64 deadline_ms)
{
	StringInfoData buf = {0};
	MerStatus	status;

	mer_proto_begin(&buf, type, id, n_fields);
	enlargeStringInfo(&buf, (int) len);
	memcpy(buf.data + buf.len, fields, len);
	buf.len += (int) len;
	status = mer_proto_send(p, &buf, deadline_ms);
	free(buf.data);
	return status;
}

int
merlib_skip(const char *data, size_t len, size_t *used)
{
	MpReader	r = {data, data + len};

	if (setjmp(malformed_jump) != 0)
		return 0;
	mp_skip(&r);
	*used = (size_t) (r.p - data);
	return 1;
}

int
merlib_int(const char *data, size_t len, int64 *value)
{
	MpReader	r = {data, data + len};

	if (setjmp(malformed_jump) != 0)
		return 0;
	*value = mp_get_int(&r);
	return r.p == r.end;
}

static size_t
give(StringInfo buf, char *out)
{
	size_t		len = (size_t) buf->len;

	memcpy(out, buf->data, len);
	free(buf->data);
	return len;
}

size_t
merlib_put_int(int64 v, char *out)
{
	StringInfoData buf = {0};

	mp_put_int(&buf, v);
	return give(&buf, out);
}

size_t
merlib_put_bin(const char *data, size_t len, char *out, int as_str)
{
	StringInfoData buf = {0};

	if (as_str)
		mp_put_str(&buf, data, (uint32) len);
	else
		mp_put_bin(&buf, data, (uint32) len);
	return give(&buf, out);
}

const char *
merlib_why(const MerProto *p)
{
	return p->why ? p->why : "";
}

int
merlib_pending(const MerProto *p)
{
	return p->npending;
}

bool
merlib_connected(const MerProto *p)
{
	return p->connected;
}
