/*
 * orderbytes.c
 *	  Order bytes of floats and numerics (docs/formats.md, "ordered values"):
 *	  memcmp of two of them is the order of the values, and they are the same
 *	  exactly when the values are equal.
 *
 * Numeric: a class byte, and for finite values other than zero the weight and
 * the base-10000 digits.  PostgreSQL keeps the layout of numeric to itself, but
 * it is its on-disk format and pg_upgrade relies on it.  The digits of a stored
 * value have neither leading nor trailing zeros.
 *
 *	class			bytes after it
 *	-Infinity 0x01
 *	negative  0x02	as positive, every byte inverted
 *	zero      0x03
 *	positive  0x04	weight, digits, 0x00
 *	Infinity  0x05
 *	NaN       0x06
 *
 * Weight w: one byte 0x80 + w for |w| <= 100; else 0xff or 0x00 and two bytes
 * big-endian of w + 0x8000.  A digit d is two bytes, 1 + d / 100 and d % 100.
 */
#include "keyenc.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "port/pg_bswap.h"
#include "utils/float.h"
#include "utils/numeric.h"
#include "varatt.h"

#define NUM_CLASS_NINF 0x01
#define NUM_CLASS_NEGATIVE 0x02
#define NUM_CLASS_ZERO 0x03
#define NUM_CLASS_POSITIVE 0x04
#define NUM_CLASS_PINF 0x05
#define NUM_CLASS_NAN 0x06

/* On-disk header of numeric. */
#define NUM_KIND_MASK 0xC000
#define NUM_LONG_NEGATIVE 0x4000
#define NUM_SHORT 0x8000
#define NUM_SPECIAL 0xC000
#define NUM_SPECIAL_MASK 0xF000
#define NUM_NAN 0xC000
#define NUM_PINF 0xD000
#define NUM_NINF 0xF000
#define NUM_LONG_SCALE 0x3FFF
#define NUM_SHORT_NEGATIVE 0x2000
#define NUM_SHORT_SCALE 0x1F80
#define NUM_SHORT_SCALE_SHIFT 7
#define NUM_SHORT_SCALE_MAX 0x3F
#define NUM_SHORT_WEIGHT_SIGN 0x0040
#define NUM_SHORT_WEIGHT 0x003F
#define NUM_WEIGHT_NEAR 100
#define NUM_DIGITS_MAX (MaxAllocSize / 4)

typedef struct NumParts
{
	uint16		special;		/* 0 or NUM_NAN, NUM_PINF, NUM_NINF */
	bool		negative;
	int			weight;
	uint16		scale;
	const char *digits;			/* int16 each, perhaps unaligned */
	int			ndigits;
} NumParts;

static inline uint16
u16_at(const char *p)
{
	uint16		v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static void
num_parts(Datum flat, NumParts *n)
{
	const char *data = VARDATA_ANY(DatumGetPointer(flat));
	int			len = (int) VARSIZE_ANY_EXHDR(DatumGetPointer(flat));
	uint16		header = u16_at(data);
	int			header_len = 2;

	memset(n, 0, sizeof(*n));
	if ((header & NUM_KIND_MASK) == NUM_SPECIAL)
	{
		n->special = header & NUM_SPECIAL_MASK;
		return;
	}
	if ((header & NUM_KIND_MASK) == NUM_SHORT)
	{
		n->negative = (header & NUM_SHORT_NEGATIVE) != 0;
		n->scale = (header & NUM_SHORT_SCALE) >> NUM_SHORT_SCALE_SHIFT;
		n->weight = header & NUM_SHORT_WEIGHT;
		if (header & NUM_SHORT_WEIGHT_SIGN)
			n->weight |= ~NUM_SHORT_WEIGHT;
	}
	else
	{
		n->negative = (header & NUM_KIND_MASK) == NUM_LONG_NEGATIVE;
		n->scale = header & NUM_LONG_SCALE;
		n->weight = (int16) u16_at(data + 2);
		header_len = 4;
	}
	n->digits = data + header_len;
	n->ndigits = (len - header_len) / 2;

	/* What PostgreSQL writes is stripped; an equal value must not depend on it. */
	while (n->ndigits > 0 && u16_at(n->digits) == 0)
	{
		n->digits += 2;
		n->ndigits--;
		n->weight--;
	}
	while (n->ndigits > 0 && u16_at(n->digits + 2 * (n->ndigits - 1)) == 0)
		n->ndigits--;
}

static void
put_magnitude(StringInfo buf, const NumParts *n)
{
	int			i;
	unsigned char *p;

	enlargeStringInfo(buf, 4 + 2 * n->ndigits);
	p = (unsigned char *) buf->data + buf->len;
	if (n->weight >= -NUM_WEIGHT_NEAR && n->weight <= NUM_WEIGHT_NEAR)
		*p++ = (unsigned char) (0x80 + n->weight);
	else
	{
		int			w = n->weight + 0x8000;

		*p++ = n->weight > 0 ? 0xff : 0x00;
		*p++ = (unsigned char) (w >> 8);
		*p++ = (unsigned char) w;
	}
	for (i = 0; i < n->ndigits; i++)
	{
		uint16		d = u16_at(n->digits + 2 * i);

		*p++ = (unsigned char) (1 + d / 100);
		*p++ = (unsigned char) (d % 100);
	}
	*p++ = 0x00;
	buf->len = (int) ((char *) p - buf->data);
	buf->data[buf->len] = '\0';
}

static void
put_numeric(StringInfo buf, Datum flat)
{
	NumParts	n;
	int			start;

	num_parts(flat, &n);
	if (n.special != 0)
	{
		appendStringInfoChar(buf, n.special == NUM_NAN ? NUM_CLASS_NAN
							 : n.special == NUM_PINF ? NUM_CLASS_PINF : NUM_CLASS_NINF);
		return;
	}
	if (n.ndigits == 0)
	{
		appendStringInfoChar(buf, NUM_CLASS_ZERO);
		return;
	}
	appendStringInfoChar(buf, n.negative ? NUM_CLASS_NEGATIVE : NUM_CLASS_POSITIVE);
	start = buf->len;
	put_magnitude(buf, &n);
	if (n.negative)
		for (; start < buf->len; start++)
			buf->data[start] = (char) ~buf->data[start];
}

uint16
mer_numeric_suffix(Datum flat)
{
	NumParts	n;

	num_parts(flat, &n);
	return n.scale;
}

/* ---------- back to numeric ---------- */

static Datum
make_numeric(uint16 special, bool negative, int weight, uint16 scale,
			 const uint16 *digits, int ndigits)
{
	bool		is_short = scale <= NUM_SHORT_SCALE_MAX &&
		weight <= NUM_SHORT_WEIGHT && weight >= -NUM_SHORT_WEIGHT - 1;
	Size		header_len = special != 0 || is_short ? 2 : 4;
	Size		size = VARHDRSZ + header_len + 2 * (Size) ndigits;
	char	   *result = palloc(size);
	uint16	   *header = (uint16 *) (result + VARHDRSZ);

	SET_VARSIZE(result, size);
	if (special != 0)
		header[0] = special;
	else if (is_short)
		header[0] = (uint16) (NUM_SHORT | (negative ? NUM_SHORT_NEGATIVE : 0) |
							  (scale << NUM_SHORT_SCALE_SHIFT) |
							  (weight < 0 ? NUM_SHORT_WEIGHT_SIGN : 0) |
							  (weight & NUM_SHORT_WEIGHT));
	else
	{
		header[0] = (uint16) ((negative ? NUM_LONG_NEGATIVE : 0) | (scale & NUM_LONG_SCALE));
		header[1] = (uint16) (int16) weight;
	}
	if (ndigits > 0)
		memcpy(result + VARHDRSZ + header_len, digits, 2 * (Size) ndigits);
	return PointerGetDatum(result);
}

static int
read_weight(const unsigned char **p, unsigned char flip)
{
	unsigned char b = *(*p)++ ^ flip;
	int			w;

	if (b != 0xff && b != 0x00)
		return (int) b - 0x80;
	w = ((*p)[0] ^ flip) << 8 | ((*p)[1] ^ flip);
	*p += 2;
	return w - 0x8000;
}

uint32
mer_numeric_order_len(const char *start, const char *end)
{
	const unsigned char *p = (const unsigned char *) start;
	const unsigned char *stop = (const unsigned char *) end;
	unsigned char flip;

	if (p >= stop || *p < NUM_CLASS_NINF || *p > NUM_CLASS_NAN)
		mp_malformed("numeric of an unknown class");
	if (*p != NUM_CLASS_NEGATIVE && *p != NUM_CLASS_POSITIVE)
		return 1;
	flip = *p++ == NUM_CLASS_NEGATIVE ? 0xff : 0x00;
	if (p < stop)
		p += (*p ^ flip) == 0xff || (*p ^ flip) == 0x00 ? 3 : 1;
	while (p < stop && (*p ^ flip) != 0x00)
		p += 2;
	if (p >= stop)
		mp_malformed("numeric ends early");
	return (uint32) (p + 1 - (const unsigned char *) start);
}

Datum
mer_numeric_from_order(const char *bytes, uint32 len, uint16 suffix)
{
	const unsigned char *p = (const unsigned char *) bytes;
	unsigned char cls;
	unsigned char flip;
	int			weight;
	uint16	   *digits;
	int			ndigits = 0;
	Datum		result;

	if (mer_numeric_order_len(bytes, bytes + len) != len)
		mp_malformed("numeric of another size");
	cls = *p++;
	if (cls == NUM_CLASS_NAN || cls == NUM_CLASS_PINF || cls == NUM_CLASS_NINF)
		return make_numeric(cls == NUM_CLASS_NAN ? NUM_NAN :
							cls == NUM_CLASS_PINF ? NUM_PINF : NUM_NINF,
							false, 0, 0, NULL, 0);
	if (cls == NUM_CLASS_ZERO)
		return make_numeric(0, false, 0, suffix, NULL, 0);
	flip = cls == NUM_CLASS_NEGATIVE ? 0xff : 0x00;
	weight = read_weight(&p, flip);
	digits = palloc(len);
	while ((*p ^ flip) != 0x00)
	{
		int			d = ((p[0] ^ flip) - 1) * 100 + (p[1] ^ flip);

		if (d > 9999)
			mp_malformed("numeric with an impossible digit");
		digits[ndigits++] = (uint16) d;
		p += 2;
	}
	result = make_numeric(0, flip != 0, weight, suffix, digits, ndigits);
	pfree(digits);
	return result;
}

/* ---------- floats ---------- */

#define SIGN_BIT (UINT64CONST(1) << 63)

uint64
mer_float_order(float8 v)
{
	uint64		bits;

	if (isnan(v))
		return PG_UINT64_MAX;
	if (v == 0)
		v = 0;					/* not -0 */
	memcpy(&bits, &v, sizeof(bits));
	return bits & SIGN_BIT ? ~bits : bits | SIGN_BIT;
}

float8
mer_float_from_order(uint64 order)
{
	float8		v;

	if (order == PG_UINT64_MAX)
		return get_float8_nan();
	order = order & SIGN_BIT ? order & ~SIGN_BIT : ~order;
	memcpy(&v, &order, sizeof(v));
	return v;
}

void
mer_order_bytes(StringInfo buf, Oid typid, Datum value)
{
	uint64		order;

	if (typid == NUMERICOID)
	{
		Datum		flat = PointerGetDatum(DatumGetNumeric(value));

		put_numeric(buf, flat);
		if (flat != value)
			pfree(DatumGetPointer(flat));
		return;
	}
	Assert(typid == FLOAT4OID || typid == FLOAT8OID);
	order = pg_hton64(mer_float_order(typid == FLOAT4OID ? (float8) DatumGetFloat4(value)
									  : DatumGetFloat8(value)));
	appendBinaryStringInfo(buf, &order, sizeof(order));
}
