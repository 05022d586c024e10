/*
 * keyenc.c
 *	  Keys (docs/formats.md, "Keys"): byte strings whose memcmp order is the
 *	  order of the operator class, and that are the same exactly when the
 *	  operator class says equal.
 *
 * The operator families of the allow-list agree on one encoding per type, so
 * the type alone chooses it.  Beyond what the format document says:
 *
 *	"char"			its byte
 *	pg_lsn, xid8	8 bytes big-endian (unsigned)
 *	timetz			microseconds as if in UTC, then the zone: integers of 8 and 4 bytes
 *	inet, cidr		family, network (4 or 16 bytes, host bits zero), length, address
 *	macaddr(8)		its bytes
 */
#include "keyenc.h"

#include <sys/socket.h>

#include "access/htup_details.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_type.h"
#include "datatype/timestamp.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/cash.h"
#include "utils/date.h"
#include "utils/inet.h"
#include "utils/lsyscache.h"
#include "utils/pg_lsn.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/varlena.h"
#include "varatt.h"

typedef enum KeyForm
{
	FORM_NONE,					/* no key over this type */
	FORM_INTEGER,				/* class integer, reg* types, money */
	FORM_UNSIGNED,				/* pg_lsn, xid8 */
	FORM_CHAR,
	FORM_FLOAT,
	FORM_NUMERIC,
	FORM_TEXT,					/* text, varchar, bytea */
	FORM_NAME,
	FORM_BPCHAR,
	FORM_FIXED,					/* uuid, macaddr, macaddr8 */
	FORM_TIMETZ,
	FORM_INTERVAL,
	FORM_INET
} KeyForm;

/* ---------- the allow-list ---------- */

typedef struct KeyFamily
{
	const char *name;			/* of the operator family, in pg_catalog */
	bool		by_collation;	/* its order depends on the collation */
	Oid			types[12];		/* indexed types; others refuse */
} KeyFamily;

static const KeyFamily families[] = {
	{"integer_ops", false, {INT2OID, INT4OID, INT8OID}},
	{"float_ops", false, {FLOAT4OID, FLOAT8OID}},
	{"numeric_ops", false, {NUMERICOID}},
	{"text_ops", true, {TEXTOID, VARCHAROID, NAMEOID}},
	{"text_pattern_ops", false, {TEXTOID, VARCHAROID}},
	{"bpchar_ops", true, {BPCHAROID}},
	{"bpchar_pattern_ops", false, {BPCHAROID}},
	{"bytea_ops", false, {BYTEAOID}},
	{"uuid_ops", false, {UUIDOID}},
	{"bool_ops", false, {BOOLOID}},
	{"oid_ops", false, {OIDOID, REGPROCOID, REGPROCEDUREOID, REGOPEROID, REGOPERATOROID, REGCLASSOID,
	REGTYPEOID, REGROLEOID, REGNAMESPACEOID, REGCONFIGOID, REGCOLLATIONOID}},
	{"char_ops", false, {CHAROID}},
	{"datetime_ops", false, {DATEOID, TIMESTAMPOID, TIMESTAMPTZOID}},
	{"time_ops", false, {TIMEOID}},
	{"timetz_ops", false, {TIMETZOID}},
	{"interval_ops", false, {INTERVALOID}},
	{"network_ops", false, {INETOID, CIDROID}},
	{"macaddr_ops", false, {MACADDROID}},
	{"macaddr8_ops", false, {MACADDR8OID}},
	{"money_ops", false, {MONEYOID}},
	{"pg_lsn_ops", false, {PG_LSNOID}},
	{"xid8_ops", false, {XID8OID}},
};

bool
mer_key_supported(Oid opfamily, Oid typid, Oid collation)
{
	HeapTuple	tuple = SearchSysCache1(OPFAMILYOID, ObjectIdGetDatum(opfamily));
	Form_pg_opfamily form;
	bool		found = false;
	int			i;
	int			j;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_opfamily) GETSTRUCT(tuple);
	for (i = 0; i < lengthof(families) && form->opfnamespace == PG_CATALOG_NAMESPACE; i++)
	{
		if (strcmp(families[i].name, NameStr(form->opfname)) != 0)
			continue;
		for (j = 0; j < lengthof(families[i].types); j++)
			if (OidIsValid(typid) && families[i].types[j] == typid)
				found = !families[i].by_collation || mer_collation_is_bytes(collation);
		break;
	}
	ReleaseSysCache(tuple);
	return found;
}

static KeyForm
key_form(Oid typid)
{
	switch (typid)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case BOOLOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
		case MONEYOID:
		case OIDOID:
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGCOLLATIONOID:
			return FORM_INTEGER;
		case PG_LSNOID:
		case XID8OID:
			return FORM_UNSIGNED;
		case CHAROID:
			return FORM_CHAR;
		case FLOAT4OID:
		case FLOAT8OID:
			return FORM_FLOAT;
		case NUMERICOID:
			return FORM_NUMERIC;
		case TEXTOID:
		case VARCHAROID:
		case BYTEAOID:
			return FORM_TEXT;
		case NAMEOID:
			return FORM_NAME;
		case BPCHAROID:
			return FORM_BPCHAR;
		case UUIDOID:
		case MACADDROID:
		case MACADDR8OID:
			return FORM_FIXED;
		case TIMETZOID:
			return FORM_TIMETZ;
		case INTERVALOID:
			return FORM_INTERVAL;
		case INETOID:
		case CIDROID:
			return FORM_INET;
		default:
			return FORM_NONE;
	}
}

/* Everything of class integer that is not signed 16, 32 or 64 bits is an OID. */
static Oid
integer_type(Oid typid)
{
	switch (typid)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case BOOLOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return typid;
		case MONEYOID:
			return INT8OID;
		default:
			return OIDOID;
	}
}

static int
fixed_len(Oid typid)
{
	if (typid == UUIDOID)
		return UUID_LEN;
	return typid == MACADDROID ? 6 : 8;
}

/* ---------- writing ---------- */

#define SIGN_64 (UINT64CONST(1) << 63)

static void
put_u64(StringInfo buf, uint64 v)
{
	v = pg_hton64(v);
	appendBinaryStringInfo(buf, &v, sizeof(v));
}

static void
put_terminated(StringInfo buf, const char *data, int len)
{
	const char *end = data + len;

	/* Text has no zero bytes, so this is one copy for it. */
	for (;;)
	{
		const char *zero = memchr(data, 0, end - data);

		if (zero == NULL)
			break;
		appendBinaryStringInfo(buf, data, (int) (zero - data));
		appendBinaryStringInfo(buf, "\x00\xff", 2);
		data = zero + 1;
	}
	appendBinaryStringInfo(buf, data, (int) (end - data));
	appendBinaryStringInfo(buf, "\x00\x00", 2);
}

static void
put_varlena(StringInfo buf, Datum value, bool trim)
{
	struct varlena *flat = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));
	const char *data = VARDATA_ANY(flat);
	int			len = (int) VARSIZE_ANY_EXHDR(flat);

	while (trim && len > 0 && data[len - 1] == ' ')
		len--;
	put_terminated(buf, data, len);
	if ((Pointer) flat != DatumGetPointer(value))
		pfree(flat);
}

static void
put_timetz(StringInfo buf, const TimeTzADT *t)
{
	uint32		zone = pg_hton32((uint32) t->zone ^ (UINT32_C(1) << 31));

	put_u64(buf, (uint64) (t->time + t->zone * USECS_PER_SEC) ^ SIGN_64);
	appendBinaryStringInfo(buf, &zone, sizeof(zone));
}

static void
put_interval(StringInfo buf, const Interval *v)
{
	int128		days = (int128) v->month * DAYS_PER_MONTH + v->day;
	int128		span = (int128) v->time + days * USECS_PER_DAY;

	put_u64(buf, (uint64) (span >> 64) ^ SIGN_64);
	put_u64(buf, (uint64) span);
}

static void
put_inet(StringInfo buf, Datum value)
{
	inet	   *in = (inet *) pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));
	int			size = ip_addrsize(in);
	int			bits = ip_bits(in);
	unsigned char network[16];
	int			i;

	for (i = 0; i < size; i++)
	{
		int			left = bits - 8 * i;
		unsigned char mask = left >= 8 ? 0xff : left <= 0 ? 0 : (unsigned char) (0xff << (8 - left));

		network[i] = ip_addr(in)[i] & mask;
	}
	appendStringInfoChar(buf, (char) ip_family(in));
	appendBinaryStringInfo(buf, network, size);
	appendStringInfoChar(buf, (char) bits);
	appendBinaryStringInfo(buf, ip_addr(in), size);
	if ((Pointer) in != DatumGetPointer(value))
		pfree(in);
}

static void
put_encoded(StringInfo buf, Oid typid, Datum value)
{
	switch (key_form(typid))
	{
		case FORM_INTEGER:
			put_u64(buf, (uint64) mer_integer_get(integer_type(typid), value) ^ SIGN_64);
			break;
		case FORM_UNSIGNED:
			put_u64(buf, DatumGetUInt64(value));
			break;
		case FORM_CHAR:
			appendStringInfoChar(buf, DatumGetChar(value));
			break;
		case FORM_FLOAT:
		case FORM_NUMERIC:
			mer_order_bytes(buf, typid, value);
			break;
		case FORM_TEXT:
			put_varlena(buf, value, false);
			break;
		case FORM_BPCHAR:
			put_varlena(buf, value, true);
			break;
		case FORM_NAME:
			put_terminated(buf, NameStr(*DatumGetName(value)),
						   (int) strlen(NameStr(*DatumGetName(value))));
			break;
		case FORM_FIXED:
			appendBinaryStringInfo(buf, DatumGetPointer(value), fixed_len(typid));
			break;
		case FORM_TIMETZ:
			put_timetz(buf, DatumGetTimeTzADTP(value));
			break;
		case FORM_INTERVAL:
			put_interval(buf, DatumGetIntervalP(value));
			break;
		case FORM_INET:
			put_inet(buf, value);
			break;
		case FORM_NONE:
			elog(ERROR, "type %u cannot be a key", typid);
	}
}

static void
invert(StringInfo buf, int start)
{
	int			i;

	for (i = start; i < buf->len; i++)
		buf->data[i] = (char) ~buf->data[i];
}

static void
put_key(StringInfo buf, const MerKeyColumn *col, Oid typid, Datum value)
{
	int			start;

	appendStringInfoChar(buf, 0x01);
	start = buf->len;
	put_encoded(buf, typid, value);
	if (col->desc)
		invert(buf, start);
}

void
mer_key_put(StringInfo buf, const MerKeyColumn *col, Datum value, bool isnull)
{
	if (isnull)
		appendStringInfoChar(buf, col->nulls_first ? 0x00 : 0x02);
	else
		put_key(buf, col, col->typid, value);
}

/* Do the two types' values share one encoding in which their order holds? */
static bool
comparable(Oid a, Oid b)
{
	KeyForm		form = key_form(a);
	KeyForm		other = key_form(b);

	if (form == FORM_NONE || other == FORM_NONE)
		return false;
	if (form == FORM_INTEGER)
	{
		bool		a_is_int = a == INT2OID || a == INT4OID || a == INT8OID;
		bool		b_is_int = b == INT2OID || b == INT4OID || b == INT8OID;

		if (other != FORM_INTEGER || a_is_int != b_is_int)
			return false;
		return a_is_int || (integer_type(a) == OIDOID && integer_type(b) == OIDOID);
	}
	if (form == FORM_FLOAT || form == FORM_INET)
		return form == other;
	if (form == FORM_TEXT || form == FORM_NAME)
		return (other == FORM_TEXT || other == FORM_NAME) && (a == BYTEAOID) == (b == BYTEAOID);
	return false;
}

bool
mer_key_put_other(StringInfo buf, const MerKeyColumn *col, Oid typid, Datum value)
{
	if (!OidIsValid(typid))
		typid = col->typid;
	if (typid != col->typid && !comparable(col->typid, typid))
		return false;
	put_key(buf, col, typid, value);
	return true;
}

/* ---------- reading ---------- */

bool
mer_key_lossless(const MerKeyColumn *col)
{
	switch (key_form(col->typid))
	{
		case FORM_NONE:
		case FORM_FLOAT:		/* the sign of zero */
		case FORM_NUMERIC:		/* the display scale */
		case FORM_BPCHAR:		/* trailing blanks */
		case FORM_INTERVAL:		/* months and days */
			return false;
		default:
			return true;
	}
}

typedef struct KeyReader
{
	const unsigned char *p;
	const unsigned char *end;
	unsigned char flip;			/* 0xff for a descending column */
} KeyReader;

static void
key_take(KeyReader *r, void *out, int len)
{
	unsigned char *to = out;
	int			i;

	if (r->end - r->p < len)
		mp_malformed("key ends early");
	for (i = 0; i < len; i++)
		to[i] = r->p[i] ^ r->flip;
	r->p += len;
}

static uint64
key_take_u64(KeyReader *r)
{
	uint64		v;

	key_take(r, &v, sizeof(v));
	return pg_ntoh64(v);
}

static Datum
key_take_text(KeyReader *r, Oid typid)
{
	const unsigned char *scan = r->p;
	int			header = typid == NAMEOID ? 0 : VARHDRSZ;
	Size		size;
	char	   *result;
	char	   *to;

	/* The unescaped form is no longer than the escaped one. */
	while (scan + 1 < r->end && !((scan[0] ^ r->flip) == 0 && (scan[1] ^ r->flip) == 0))
		scan += (scan[0] ^ r->flip) == 0 ? 2 : 1;
	if (scan + 1 >= r->end)
		mp_malformed("key ends early");
	size = header + (Size) (scan - r->p);
	result = palloc0(Max(size, typid == NAMEOID ? NAMEDATALEN : 0));
	to = result + header;
	while (r->p < scan)
	{
		*to = (char) (*r->p ^ r->flip);
		r->p += *to == 0 ? 2 : 1;
		to++;
	}
	r->p = scan + 2;
	if (typid == NAMEOID)
	{
		if (to - result >= NAMEDATALEN)
			mp_malformed("name too long");
		return NameGetDatum((Name) result);
	}
	SET_VARSIZE(result, to - result);
	return PointerGetDatum(result);
}

static Datum
key_take_timetz(KeyReader *r)
{
	TimeTzADT  *t = palloc(sizeof(TimeTzADT));
	int64		utc = (int64) (key_take_u64(r) ^ SIGN_64);
	uint32		zone;

	key_take(r, &zone, sizeof(zone));
	t->zone = (int32) (pg_ntoh32(zone) ^ (UINT32_C(1) << 31));
	t->time = utc - t->zone * USECS_PER_SEC;
	return TimeTzADTPGetDatum(t);
}

static Datum
key_take_inet(KeyReader *r)
{
	inet	   *in = palloc0(sizeof(inet));
	unsigned char head[17];

	/* A zero word of length reads as an uncompressed value: see inet.h. */
	key_take(r, &ip_family(in), 1);
	if (ip_family(in) != PGSQL_AF_INET && ip_family(in) != PGSQL_AF_INET6)
		mp_malformed("address of an unknown family");
	key_take(r, head, ip_addrsize(in));
	key_take(r, &ip_bits(in), 1);
	key_take(r, ip_addr(in), ip_addrsize(in));
	SET_INET_VARSIZE(in);
	return InetPGetDatum(in);
}

Datum
mer_key_get(const char **p, const char *end, const MerKeyColumn *col, bool *isnull)
{
	KeyReader	r = {(const unsigned char *) *p, (const unsigned char *) end, 0};
	unsigned char marker;
	unsigned char byte;
	char	   *fixed;
	Datum		result = (Datum) 0;

	key_take(&r, &marker, 1);
	*isnull = marker != 0x01;
	if (!*isnull)
	{
		r.flip = col->desc ? 0xff : 0x00;
		switch (key_form(col->typid))
		{
			case FORM_INTEGER:
				result = mer_integer_datum(integer_type(col->typid),
										   (int64) (key_take_u64(&r) ^ SIGN_64));
				break;
			case FORM_UNSIGNED:
				result = UInt64GetDatum(key_take_u64(&r));
				break;
			case FORM_CHAR:
				key_take(&r, &byte, 1);
				result = CharGetDatum((char) byte);
				break;
			case FORM_TEXT:
			case FORM_NAME:
				result = key_take_text(&r, col->typid);
				break;
			case FORM_FIXED:
				fixed = palloc(fixed_len(col->typid));
				key_take(&r, fixed, fixed_len(col->typid));
				result = PointerGetDatum(fixed);
				break;
			case FORM_TIMETZ:
				result = key_take_timetz(&r);
				break;
			case FORM_INET:
				result = key_take_inet(&r);
				break;
			default:
				elog(ERROR, "type %u cannot be rebuilt from a key", col->typid);
		}
	}
	*p = (const char *) r.p;
	return result;
}
