/*
 * msgpack.c
 *	  The part of msgpack that our formats use: nil, booleans, integers, bin,
 *	  str, arrays and maps.
 *
 * Writers choose the shortest form.  Readers accept every form of a value and
 * never read past the end of their input.
 */
#include "proto.h"

/* Depth of nested arrays that mp_skip follows. */
#define MP_DEPTH_MAX 64

static inline unsigned char *
put_room(StringInfo buf, uint32 len)
{
	unsigned char *p;

	if (unlikely(buf->len + (int64) len >= buf->maxlen))
		enlargeStringInfo(buf, (int) len);
	p = (unsigned char *) buf->data + buf->len;
	buf->len += (int) len;
	return p;
}

static inline void
store(unsigned char *p, uint64 v, int width)
{
	int			i;

	for (i = width - 1; i >= 0; i--)
	{
		p[i] = (unsigned char) v;
		v >>= 8;
	}
}

static inline uint64
load(const char *at, int width)
{
	const unsigned char *p = (const unsigned char *) at;
	uint64		v = 0;
	int			i;

	for (i = 0; i < width; i++)
		v = (v << 8) | p[i];
	return v;
}

static inline void
put_tagged(StringInfo buf, unsigned char tag, uint64 v, int width)
{
	unsigned char *p = put_room(buf, 1 + width);

	p[0] = tag;
	store(p + 1, v, width);
}

static void
put_count(StringInfo buf, uint32 n, unsigned char fix, unsigned char tag16)
{
	if (n < 16)
		*put_room(buf, 1) = (unsigned char) (fix | n);
	else if (n <= 0xffff)
		put_tagged(buf, tag16, n, 2);
	else
		put_tagged(buf, (unsigned char) (tag16 + 1), n, 4);
}

void
mp_put_array(StringInfo buf, uint32 n)
{
	put_count(buf, n, 0x90, 0xdc);
}

void
mp_put_map(StringInfo buf, uint32 n)
{
	put_count(buf, n, 0x80, 0xde);
}

void
mp_put_int(StringInfo buf, int64 v)
{
	if (v >= -32 && v < 128)
		*put_room(buf, 1) = (unsigned char) v;
	else if (v >= 0)
	{
		if (v <= 0xff)
			put_tagged(buf, 0xcc, (uint64) v, 1);
		else if (v <= 0xffff)
			put_tagged(buf, 0xcd, (uint64) v, 2);
		else if (v <= INT64_C(0xffffffff))
			put_tagged(buf, 0xce, (uint64) v, 4);
		else
			put_tagged(buf, 0xcf, (uint64) v, 8);
	}
	else if (v >= -128)
		put_tagged(buf, 0xd0, (uint64) v, 1);
	else if (v >= -32768)
		put_tagged(buf, 0xd1, (uint64) v, 2);
	else if (v >= -INT64_C(2147483648))
		put_tagged(buf, 0xd2, (uint64) v, 4);
	else
		put_tagged(buf, 0xd3, (uint64) v, 8);
}

void
mp_put_bool(StringInfo buf, bool v)
{
	*put_room(buf, 1) = v ? 0xc3 : 0xc2;
}

void
mp_put_nil(StringInfo buf)
{
	*put_room(buf, 1) = 0xc0;
}

char *
mp_put_bin_space(StringInfo buf, uint32 len)
{
	if (len <= 0xff)
		put_tagged(buf, 0xc4, len, 1);
	else if (len <= 0xffff)
		put_tagged(buf, 0xc5, len, 2);
	else
		put_tagged(buf, 0xc6, len, 4);
	return (char *) put_room(buf, len);
}

void
mp_put_bin(StringInfo buf, const void *data, uint32 len)
{
	char	   *space = mp_put_bin_space(buf, len);

	if (len > 0)
		memcpy(space, data, len);
}

void
mp_put_str(StringInfo buf, const char *data, uint32 len)
{
	if (len < 32)
		*put_room(buf, 1) = (unsigned char) (0xa0 | len);
	else if (len <= 0xff)
		put_tagged(buf, 0xd9, len, 1);
	else if (len <= 0xffff)
		put_tagged(buf, 0xda, len, 2);
	else
		put_tagged(buf, 0xdb, len, 4);
	if (len > 0)
		memcpy(put_room(buf, len), data, len);
}

/* ---------- readers ---------- */

static inline const char *
take(MpReader *r, uint64 len)
{
	const char *p = r->p;

	if (unlikely((uint64) (r->end - p) < len))
		mp_malformed("value ends early");
	r->p = p + len;
	return p;
}

static inline unsigned char
take_tag(MpReader *r)
{
	return *(const unsigned char *) take(r, 1);
}

static uint32
get_count(MpReader *r, unsigned char fix, unsigned char tag16, const char *why)
{
	unsigned char tag = take_tag(r);
	uint64		n;

	if ((tag & 0xf0) == fix)
		return tag & 0x0f;
	if (tag == tag16)
		n = load(take(r, 2), 2);
	else if (tag == tag16 + 1)
		n = load(take(r, 4), 4);
	else
		mp_malformed(why);

	/* Each element takes a byte at least: a caller may size a buffer by n. */
	if (n > (uint64) (r->end - r->p))
		mp_malformed("more elements than bytes");
	return (uint32) n;
}

uint32
mp_get_array(MpReader *r)
{
	return get_count(r, 0x90, 0xdc, "array expected");
}

uint32
mp_get_map(MpReader *r)
{
	return get_count(r, 0x80, 0xde, "map expected");
}

int64
mp_get_int(MpReader *r)
{
	unsigned char tag = take_tag(r);
	uint64		v;

	if (tag < 0x80 || tag >= 0xe0)
		return (int8) tag;
	switch (tag)
	{
		case 0xcc:
			return (int64) load(take(r, 1), 1);
		case 0xcd:
			return (int64) load(take(r, 2), 2);
		case 0xce:
			return (int64) load(take(r, 4), 4);
		case 0xcf:
			v = load(take(r, 8), 8);
			if (v > (uint64) INT64_C(0x7fffffffffffffff))
				mp_malformed("integer out of range");
			return (int64) v;
		case 0xd0:
			return (int8) load(take(r, 1), 1);
		case 0xd1:
			return (int16) load(take(r, 2), 2);
		case 0xd2:
			return (int32) load(take(r, 4), 4);
		case 0xd3:
			return (int64) load(take(r, 8), 8);
		default:
			mp_malformed("integer expected");
	}
}

bool
mp_get_bool(MpReader *r)
{
	unsigned char tag = take_tag(r);

	/* Booleans may be sent as integers (docs/protocol.md). */
	if (tag == 0xc2 || tag == 0x00)
		return false;
	if (tag == 0xc3 || tag == 0x01)
		return true;
	mp_malformed("boolean expected");
}

bool
mp_try_nil(MpReader *r)
{
	if (r->p >= r->end)
		mp_malformed("value ends early");
	if (*(const unsigned char *) r->p != 0xc0)
		return false;
	r->p++;
	return true;
}

const char *
mp_get_bytes(MpReader *r, uint32 *len)
{
	unsigned char tag = take_tag(r);

	if ((tag & 0xe0) == 0xa0)
		*len = tag & 0x1f;
	else if (tag == 0xc4 || tag == 0xd9)
		*len = (uint32) load(take(r, 1), 1);
	else if (tag == 0xc5 || tag == 0xda)
		*len = (uint32) load(take(r, 2), 2);
	else if (tag == 0xc6 || tag == 0xdb)
		*len = (uint32) load(take(r, 4), 4);
	else
		mp_malformed("bytes expected");
	return take(r, *len);
}

static void
skip_value(MpReader *r, int depth)
{
	unsigned char tag;
	uint32		len;
	uint64		n = 0;

	if (depth > MP_DEPTH_MAX)
		mp_malformed("nested too deeply");
	if (r->p >= r->end)
		mp_malformed("value ends early");
	tag = *(const unsigned char *) r->p;

	if ((tag & 0xf0) == 0x90 || tag == 0xdc || tag == 0xdd)
		n = mp_get_array(r);
	else if ((tag & 0xf0) == 0x80 || tag == 0xde || tag == 0xdf)
		n = 2 * (uint64) mp_get_map(r);
	else if (tag < 0x80 || tag >= 0xe0 || (tag >= 0xcc && tag <= 0xd3))
	{
		static const unsigned char width[8] = {1, 2, 4, 8, 1, 2, 4, 8};

		r->p++;
		if (tag >= 0xcc && tag <= 0xd3)
			take(r, width[tag - 0xcc]);
	}
	else if (tag == 0xc0 || tag == 0xc2 || tag == 0xc3)
		r->p++;
	else if (tag == 0xca || tag == 0xcb)
	{
		r->p++;
		take(r, tag == 0xca ? 4 : 8);
	}
	else
		(void) mp_get_bytes(r, &len);

	while (n-- > 0)
		skip_value(r, depth + 1);
}

void
mp_skip(MpReader *r)
{
	skip_value(r, 0);
}
