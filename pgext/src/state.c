/*
 * state.c
 *	  Rows of the table meridian.state (state.h).
 */
#include "state.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

Oid
mer_state_table(void)
{
	Oid			schema = get_namespace_oid("meridian", true);

	return OidIsValid(schema) ? get_relname_relid("state", schema) : InvalidOid;
}

/* A copy of the row, NULL if there is none; an index finds it. */
static HeapTuple
find(Relation state, const char *name)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_TEXTEQ, CStringGetTextDatum(name));
	scan = systable_beginscan(state, RelationGetPrimaryKeyIndex(state, false), true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

int64
mer_state_get(const char *name)
{
	Relation	state = table_open(mer_state_table(), AccessShareLock);
	HeapTuple	tuple = find(state, name);
	bool		isnull;
	int64		value = 0;

	if (tuple != NULL)
		value = DatumGetInt64(heap_getattr(tuple, 2, RelationGetDescr(state), &isnull));
	table_close(state, AccessShareLock);
	return value;
}

void
mer_state_set(const char *name, int64 value)
{
	Relation	state = table_open(mer_state_table(), RowExclusiveLock);
	HeapTuple	old = find(state, name);
	Datum		values[2] = {CStringGetTextDatum(name), Int64GetDatum(value)};
	bool		nulls[2] = {false, false};

	if (value != 0)
	{
		HeapTuple	new = heap_form_tuple(RelationGetDescr(state), values, nulls);

		if (old != NULL)
			CatalogTupleUpdate(state, &old->t_self, new);
		else
			CatalogTupleInsert(state, new);
	}
	else if (old != NULL)
		CatalogTupleDelete(state, &old->t_self);
	table_close(state, RowExclusiveLock);
}
