/*
 * rowcodec.c
 *	  Column classes, and values of rows on the wire (docs/formats.md,
 *	  "Storage ids").
 *
 * A value that comes back is bit-identical to the one that went: where the
 * form that storage compares loses something (display scale, the sign of
 * zero), a suffix carries it.
 */
#include "meridian.h"

#include <math.h>

#include "access/detoast.h"
#include "access/htup_details.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/expandeddatum.h"
#include "utils/lsyscache.h"
#include "utils/pg_locale.h"
#include "varatt.h"

#include "keyenc.h"

/* Is text under this collation ordered as memcmp orders its bytes? */
bool
mer_collation_is_bytes(Oid collation)
{
	pg_locale_t locale;

	if (collation == C_COLLATION_OID)
		return true;
	if (!OidIsValid(collation))
		return false;
	locale = pg_newlocale_from_collation(collation);

	/* C, and the builtin provider's C.UTF-8 and pg_unicode_fast, compare bytes. */
	return locale->collate_is_c && locale->deterministic;
}

MerClass
mer_column_class(Oid typid, Oid collation)
{
	switch (typid)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case BOOLOID:
		case OIDOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return MER_INTEGER;
		case TEXTOID:
		case VARCHAROID:
		case NAMEOID:
			return mer_collation_is_bytes(collation) ? MER_BYTES : MER_OPAQUE;
		case BYTEAOID:
		case UUIDOID:
			return MER_BYTES;
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
			return MER_ORDERED;
		default:
			return MER_OPAQUE;
	}
}

void
mer_column_init(MerColumn *col, Form_pg_attribute att)
{
	col->attnum = att->attnum;
	col->typid = att->attisdropped ? InvalidOid : getBaseType(att->atttypid);
	col->typlen = att->attlen;
	col->typbyval = att->attbyval;
	col->dropped = att->attisdropped;
	col->cls = att->attisdropped ? MER_OPAQUE
		: mer_column_class(col->typid, att->attcollation);
}

/* ---------- writing ---------- */

int64
mer_integer_get(Oid typid, Datum value)
{
	switch (typid)
	{
		case INT2OID:
			return DatumGetInt16(value);
		case INT4OID:
		case DATEOID:
			return DatumGetInt32(value);
		case BOOLOID:
			return DatumGetBool(value) ? 1 : 0;
		case OIDOID:
			return DatumGetObjectId(value);
		default:
			return DatumGetInt64(value);
	}
}

Datum
mer_integer_datum(Oid typid, int64 v)
{
	switch (typid)
	{
		case INT2OID:
			return Int16GetDatum((int16) v);
		case INT4OID:
		case DATEOID:
			return Int32GetDatum((int32) v);
		case BOOLOID:
			return BoolGetDatum(v != 0);
		case OIDOID:
			return ObjectIdGetDatum((Oid) v);
		default:
			return Int64GetDatum(v);
	}
}

static void
put_varlena(StringInfo buf, Datum value)
{
	struct varlena *flat;

	if (VARATT_IS_EXTERNAL_EXPANDED(DatumGetPointer(value)))
	{
		ExpandedObjectHeader *eoh = DatumGetEOHP(value);
		Size		size = EOH_get_flat_size(eoh);

		flat = palloc(size);
		EOH_flatten_into(eoh, flat, size);
	}
	else
		flat = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));
	mp_put_bin(buf, VARDATA_ANY(flat), (uint32) VARSIZE_ANY_EXHDR(flat));
	if ((Pointer) flat != DatumGetPointer(value))
		pfree(flat);
}

static void
put_ordered(StringInfo buf, const MerColumn *col, Datum value)
{
	StringInfoData bytes;

	if (col->typid == NUMERICOID)
	{
		Datum		flat = PointerGetDatum(pg_detoast_datum((struct varlena *) DatumGetPointer(value)));
		uint16		scale;

		initStringInfo(&bytes);
		mer_order_bytes(&bytes, NUMERICOID, flat);
		scale = mer_numeric_suffix(flat);
		appendStringInfoCharMacro(&bytes, (char) (scale >> 8));
		appendStringInfoCharMacro(&bytes, (char) scale);
		mp_put_bin(buf, bytes.data, (uint32) bytes.len);
		pfree(bytes.data);
		if (flat != value)
			pfree(DatumGetPointer(flat));
	}
	else
	{
		char	   *p = mp_put_bin_space(buf, 9);
		float8		v = col->typid == FLOAT4OID ? DatumGetFloat4(value) : DatumGetFloat8(value);
		uint64		order = pg_hton64(mer_float_order(v));

		memcpy(p, &order, 8);
		p[8] = (v == 0 && signbit(v)) ? 1 : 0;
	}
}

void
mer_value_put(StringInfo buf, const MerColumn *col, Datum value, bool isnull)
{
	if (isnull || col->dropped)
	{
		mp_put_nil(buf);
		return;
	}
	if (col->cls == MER_INTEGER)
		mp_put_int(buf, mer_integer_get(col->typid, value));
	else if (col->cls == MER_ORDERED)
		put_ordered(buf, col, value);
	else if (col->typlen == -1)
		put_varlena(buf, value);
	else if (col->typid == NAMEOID)
		mp_put_bin(buf, DatumGetCString(value), (uint32) strlen(DatumGetCString(value)));
	else if (col->typbyval)
	{
		char		raw[sizeof(Datum)];

		store_att_byval(raw, value, col->typlen);
		mp_put_bin(buf, raw, (uint32) col->typlen);
	}
	else if (col->typlen == -2)
		mp_put_bin(buf, DatumGetCString(value), (uint32) strlen(DatumGetCString(value)));
	else
		mp_put_bin(buf, DatumGetPointer(value), (uint32) col->typlen);
}

/* ---------- reading ---------- */

static Datum
get_varlena(const char *data, uint32 len)
{
	struct varlena *result = palloc(VARHDRSZ + (Size) len);

	SET_VARSIZE(result, VARHDRSZ + (Size) len);
	memcpy(VARDATA(result), data, len);
	return PointerGetDatum(result);
}

static Datum
get_fixed(const MerColumn *col, const char *data, uint32 len)
{
	char	   *result;

	if (col->typid == NAMEOID)
	{
		if (len >= NAMEDATALEN)
			mp_malformed("name too long");
		result = palloc0(NAMEDATALEN);
	}
	else if (col->typlen == -2)
		result = palloc0((Size) len + 1);
	else if ((int32) len != col->typlen)
		mp_malformed("value of another size");
	else if (col->typbyval)
	{
		Datum		raw = 0;

		/* fetch_att wants alignment that the frame does not give. */
		memcpy(&raw, data, len);
		return fetch_att(&raw, true, col->typlen);
	}
	else
		result = palloc(len);
	memcpy(result, data, len);
	return PointerGetDatum(result);
}

static Datum
get_ordered(const MerColumn *col, const char *data, uint32 len)
{
	uint64		order;
	float8		v;

	if (col->typid == NUMERICOID)
	{
		if (len < 3)
			mp_malformed("numeric too short");
		return mer_numeric_from_order(data, len - 2,
									  (uint16) ((unsigned char) data[len - 2] << 8 |
												(unsigned char) data[len - 1]));
	}
	if (len != 9)
		mp_malformed("float of another size");
	memcpy(&order, data, 8);
	v = mer_float_from_order(pg_ntoh64(order));
	if (data[8] == 1)
		v = -v;
	return col->typid == FLOAT4OID ? Float4GetDatum((float4) v) : Float8GetDatum(v);
}

Datum
mer_value_get(MpReader *r, const MerColumn *col, bool *isnull)
{
	const char *data;
	uint32		len;

	*isnull = mp_try_nil(r);
	if (*isnull)
		return (Datum) 0;
	if (col->dropped)
	{
		mp_skip(r);
		*isnull = true;
		return (Datum) 0;
	}
	if (col->cls == MER_INTEGER)
		return mer_integer_datum(col->typid, mp_get_int(r));
	data = mp_get_bytes(r, &len);
	if (col->cls == MER_ORDERED)
		return get_ordered(col, data, len);
	if (col->typlen == -1)
		return get_varlena(data, len);
	return get_fixed(col, data, len);
}
