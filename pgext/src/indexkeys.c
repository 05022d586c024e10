/*
 * indexkeys.c
 *	  From scan keys to ranges of encoded keys.
 *
 * Conditions that a range cannot express are left to the executor's recheck;
 * a range may be wider than the conditions, never narrower.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "utils/array.h"
#include "utils/lsyscache.h"

#include "store.h"

#define MAX_RANGES 50000

/* What the conditions on one index column amount to. */
typedef struct Column
{
	int			nequals;		/* 0: not bound by equality */
	MerBytes   *equals;			/* ascending, each once */
	bool		equals_null;
	bool		bounded;		/* lo, hi or NOT NULL */
	MerBytes	lo;				/* data NULL: none */
	MerBytes	hi;
} Column;

static MerBytes
bytes_of(StringInfo buf)
{
	MerBytes	b = {buf->data, buf->len};

	return b;
}

/* The least key above all keys that start with these bytes; data NULL: none. */
static MerBytes
after_prefix(MerBytes prefix)
{
	MerBytes	none = {NULL, 0};
	char	   *copy = palloc(prefix.len + 1);
	uint32		len = prefix.len;

	memcpy(copy, prefix.data, len);
	while (len > 0 && (uint8) copy[len - 1] == 0xff)
		len--;
	if (len == 0)
		return none;
	copy[len - 1]++;
	return (MerBytes) {copy, len};
}

/* Encode a comparison value; false: it cannot bound the column. */
static bool
encode(StringInfo buf, Relation index, MerKeyColumn *col, int attno, Oid subtype, Datum value)
{
	initStringInfo(buf);
	if (subtype == InvalidOid || subtype == index->rd_opcintype[attno - 1] ||
		subtype == col->typid)
	{
		mer_key_put(buf, col, value, false);
		return true;
	}
	return mer_key_put_other(buf, col, subtype, value);
}

/* ---------- one condition ---------- */

static void
raise_lo(Column *c, MerBytes lo)
{
	c->bounded = true;
	if (lo.data && (c->lo.data == NULL || mer_bytes_cmp(&lo, &c->lo) > 0))
		c->lo = lo;
}

static void
lower_hi(Column *c, MerBytes hi)
{
	c->bounded = true;
	if (hi.data && (c->hi.data == NULL || mer_bytes_cmp(&hi, &c->hi) < 0))
		c->hi = hi;
}

static void
add_bound(Column *c, bool desc, StrategyNumber strategy, MerBytes value)
{
	switch (strategy)
	{
		case BTLessStrategyNumber:
			if (desc)
				raise_lo(c, after_prefix(value));
			else
				lower_hi(c, value);
			break;
		case BTLessEqualStrategyNumber:
			if (desc)
				raise_lo(c, value);
			else
				lower_hi(c, after_prefix(value));
			break;
		case BTGreaterEqualStrategyNumber:
			if (desc)
				lower_hi(c, after_prefix(value));
			else
				raise_lo(c, value);
			break;
		case BTGreaterStrategyNumber:
			if (desc)
				lower_hi(c, value);
			else
				raise_lo(c, after_prefix(value));
			break;
		default:
			elog(ERROR, "meridian: unknown strategy %d", strategy);
	}
}

static void
add_equal(MerRanges *out, Column *c, MerBytes value, bool is_null)
{
	if (c->nequals > 0)
	{
		out->recheck = true;	/* the first one binds, the executor looks at the rest */
		return;
	}
	c->equals = palloc(sizeof(MerBytes));
	c->equals[0] = value;
	c->nequals = 1;
	c->equals_null = is_null;
}

/* False: no element can match. */
static bool
add_array(MerRanges *out, Column *c, Relation index, MerKeyColumn *col, ScanKey key)
{
	ArrayType  *array = DatumGetArrayTypeP(key->sk_argument);
	Oid			type = ARR_ELEMTYPE(array);
	int16		typlen;
	bool		typbyval;
	char		typalign;
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	int			nequals = 0;
	int			unique = 0;
	MerBytes   *equals;

	if (key->sk_strategy != BTEqualStrategyNumber || c->nequals > 0)
	{
		out->recheck = true;
		return true;
	}
	get_typlenbyvalalign(type, &typlen, &typbyval, &typalign);
	deconstruct_array(array, type, typlen, typbyval, typalign, &elems, &nulls, &n);
	equals = palloc(Max(n, 1) * sizeof(MerBytes));
	for (int i = 0; i < n; i++)
	{
		StringInfoData buf;

		if (nulls[i])
			continue;
		if (!encode(&buf, index, col, key->sk_attno,
					OidIsValid(key->sk_subtype) ? key->sk_subtype : type, elems[i]))
		{
			out->recheck = true;
			return true;
		}
		equals[nequals++] = bytes_of(&buf);
	}
	if (nequals == 0)
		return false;
	qsort(equals, nequals, sizeof(MerBytes), mer_bytes_cmp);
	for (int i = 0; i < nequals; i++)
		if (unique == 0 || mer_bytes_cmp(&equals[unique - 1], &equals[i]) != 0)
			equals[unique++] = equals[i];
	c->equals = equals;
	c->nequals = unique;
	return true;
}

/* Of a row comparison, the first column's part bounds the range. */
static bool
add_row(MerRanges *out, Column *c, Relation index, MerKeyColumn *col, ScanKey header)
{
	ScanKey		first = (ScanKey) DatumGetPointer(header->sk_argument);
	StringInfoData buf;
	StrategyNumber strategy = header->sk_strategy;

	out->recheck = true;
	if (first->sk_flags & SK_ISNULL)
		return false;
	if (first->sk_attno != header->sk_attno ||
		!encode(&buf, index, col, first->sk_attno, first->sk_subtype, first->sk_argument))
		return true;
	if (strategy == BTLessStrategyNumber)
		strategy = BTLessEqualStrategyNumber;
	if (strategy == BTGreaterStrategyNumber)
		strategy = BTGreaterEqualStrategyNumber;
	add_bound(c, col->desc, strategy, bytes_of(&buf));
	return true;
}

/* False: the condition can never be true. */
static bool
add_key(MerRanges *out, Column *c, Relation index, MerKeyColumn *col, ScanKey key)
{
	StringInfoData buf;

	if (key->sk_flags & SK_ROW_HEADER)
		return add_row(out, c, index, col, key);
	if (key->sk_flags & SK_SEARCHNULL)
	{
		initStringInfo(&buf);
		mer_key_put(&buf, col, (Datum) 0, true);
		add_equal(out, c, bytes_of(&buf), true);
		return true;
	}
	if (key->sk_flags & SK_SEARCHNOTNULL)
	{
		c->bounded = true;
		return true;
	}
	if (key->sk_flags & SK_ISNULL)
		return false;			/* all our operators are strict */
	if (key->sk_flags & SK_SEARCHARRAY)
		return add_array(out, c, index, col, key);
	if (!encode(&buf, index, col, key->sk_attno, key->sk_subtype, key->sk_argument))
	{
		out->recheck = true;
		c->bounded = true;
		return true;
	}
	if (OidIsValid(key->sk_subtype) && key->sk_subtype != index->rd_opcintype[key->sk_attno - 1])
		out->recheck = true;
	if (key->sk_strategy == BTEqualStrategyNumber)
		add_equal(out, c, bytes_of(&buf), false);
	else
		add_bound(c, col->desc, key->sk_strategy, bytes_of(&buf));
	return true;
}

/* ---------- ranges ---------- */

static MerBytes
join_bytes(MerBytes a, MerBytes b)
{
	char	   *data = palloc(a.len + b.len + 1);

	if (a.len > 0)
		memcpy(data, a.data, a.len);
	if (b.len > 0)
		memcpy(data + a.len, b.data, b.len);
	return (MerBytes) {data, a.len + b.len};
}

static void
multiply(MerBytes **prefixes, int *n, Column *c)
{
	MerBytes   *result = palloc((Size) *n * c->nequals * sizeof(MerBytes));
	int			k = 0;

	for (int i = 0; i < *n; i++)
		for (int j = 0; j < c->nequals; j++)
			result[k++] = join_bytes((*prefixes)[i], c->equals[j]);
	*prefixes = result;
	*n = k;
}

static MerRange
prefix_range(MerBytes prefix, Column *c, bool point)
{
	static const MerBytes value_marker = {"\001", 1};
	static const MerBytes beyond_values = {"\002", 1};
	MerRange	r;

	r.point = point;
	if (c)
	{
		r.lo = join_bytes(prefix, c->lo.data ? c->lo : value_marker);
		r.hi = join_bytes(prefix, c->hi.data ? c->hi : beyond_values);
		return r;
	}
	r.lo = prefix.len > 0 ? prefix : (MerBytes) {NULL, 0};
	r.hi = prefix.len > 0 ? after_prefix(prefix) : (MerBytes) {NULL, 0};
	return r;
}

static void
make_ranges(MerRanges *out, MerRel *mr, Column *columns)
{
	MerBytes   *prefixes = palloc0(sizeof(MerBytes));
	int			n = 1;
	int			a;
	Column	   *bound = NULL;
	bool		has_null = false;
	bool		point;

	prefixes[0].data = "";
	for (a = 0; a < mr->nkeys && columns[a].nequals > 0; a++)
	{
		if ((int64) n * columns[a].nequals > MAX_RANGES)
			break;
		multiply(&prefixes, &n, &columns[a]);
		has_null |= columns[a].equals_null;
		out->recheck |= columns[a].bounded;
	}
	point = a == mr->nkeys && mr->unique && (!has_null || mr->nulls_not_distinct);
	if (a < mr->nkeys && columns[a].nequals == 0 && columns[a].bounded)
		bound = &columns[a++];
	for (; a < mr->nkeys; a++)
		out->recheck |= columns[a].nequals > 0 || columns[a].bounded;
	out->ranges = palloc(n * sizeof(MerRange));
	out->points = point;
	for (int i = 0; i < n; i++)
	{
		MerRange	r = prefix_range(prefixes[i], bound, point);

		if (r.lo.data && r.hi.data && mer_bytes_cmp(&r.lo, &r.hi) >= 0)
			continue;
		out->ranges[out->n++] = r;
	}
}

/* Everything is palloc'd in the current context. */
void
mer_index_ranges(MerRanges *out, Relation index, ScanKey keys, int nkeys)
{
	MerRel	   *mr = mer_rel(index);
	Column	   *columns = palloc0(mr->nkeys * sizeof(Column));

	memset(out, 0, sizeof(MerRanges));
	for (int i = 0; i < nkeys; i++)
	{
		int			a = keys[i].sk_attno - 1;

		if (a < 0 || a >= mr->nkeys)
			elog(ERROR, "meridian: scan key on column %d of index \"%s\"", a + 1,
				 RelationGetRelationName(index));
		if (!add_key(out, &columns[a], index, &mr->keys[a], &keys[i]))
			return;
	}
	make_ranges(out, mr, columns);
}
