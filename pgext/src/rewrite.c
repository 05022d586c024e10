/*
 * rewrite.c
 *	  Tables whose rows are keyed by a primary key that is about to go.
 *
 * Row keys of an organised table are its primary key's values.  Before that key
 * is dropped or changes its type, the rows move to a new storage id under hidden
 * ids, and the primary key becomes an index like others.
 */
#include "postgres.h"

#include "access/multixact.h"
#include "access/relation.h"
#include "access/sysattr.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/namespace.h"
#include "commands/cluster.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "nodes/bitmapset.h"
#include "parser/parse_type.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"

#include "store.h"
#include "utility.h"

static void
copy_rows(Relation from, Relation to)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(from, snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(from, NULL);
	CommandId	cid = GetCurrentCommandId(true);

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		table_tuple_insert(to, slot, cid, TABLE_INSERT_SKIP_FSM, NULL);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
}

/* As VACUUM FULL would: a transient table, its storage exchanged, indexes built anew. */
static void
unorganise(Oid relid)
{
	Relation	table = table_open(relid, NoLock);
	Oid			transient;
	Relation	to;

	CheckTableNotInUse(table, "ALTER TABLE");
	transient = make_new_heap(relid, InvalidOid, table->rd_rel->relam,
							  RELPERSISTENCE_PERMANENT, AccessExclusiveLock);
	to = table_open(transient, NoLock);
	copy_rows(table, to);
	table_close(to, NoLock);
	table_close(table, NoLock);
	finish_heap_swap(relid, transient, false, false, false, true,
					 InvalidTransactionId, InvalidMultiXactId, RELPERSISTENCE_PERMANENT);
	CommandCounterIncrement();
}

static bool
drops_primary_key(Oid relid, const char *constraint)
{
	Relation	rel = relation_open(relid, NoLock);
	Oid			index = RelationGetPrimaryKeyIndex(rel, true);
	Oid			oid = OidIsValid(index) ? get_index_constraint(index) : InvalidOid;
	char	   *name = OidIsValid(oid) ? get_constraint_name(oid) : NULL;

	relation_close(rel, NoLock);
	return name != NULL && strcmp(name, constraint) == 0;
}

static bool
in_primary_key(Oid relid, const char *column)
{
	AttrNumber	attnum = get_attnum(relid, column);
	Relation	rel;
	Bitmapset  *key;

	if (attnum <= 0)
		return false;
	rel = relation_open(relid, NoLock);
	key = RelationGetIndexAttrBitmap(rel, INDEX_ATTR_BITMAP_PRIMARY_KEY);
	relation_close(rel, NoLock);
	return bms_is_member(attnum - FirstLowInvalidHeapAttributeNumber, key);
}

/* A new length or precision leaves keys as they are; a new type or collation may not. */
static bool
changes_keys(Oid relid, const char *column, ColumnDef *def)
{
	AttrNumber	attnum = get_attnum(relid, column);

	if (!in_primary_key(relid, column))
		return false;
	return def->collClause != NULL || def->raw_default != NULL ||
		typenameTypeId(NULL, def->typeName) != get_atttype(relid, attnum);
}

/* parent: the table the command names; relid: it, or one that inherits from it. */
static bool
breaks_row_keys(Oid parent, Oid relid, const AlterTableCmd *cmd)
{
	switch (cmd->subtype)
	{
		case AT_DropConstraint:
			return drops_primary_key(parent, cmd->name);
		case AT_DropColumn:
			return in_primary_key(relid, cmd->name);
		case AT_AlterColumnType:
			return changes_keys(relid, cmd->name, (ColumnDef *) cmd->def);
		default:
			return false;
	}
}

static bool
may_break_row_keys(const AlterTableStmt *stmt)
{
	foreach_node(AlterTableCmd, cmd, stmt->cmds)
	{
		if (cmd->subtype == AT_DropConstraint || cmd->subtype == AT_DropColumn ||
			cmd->subtype == AT_AlterColumnType)
			return true;
	}
	return false;
}

void
mer_rewrite_before_alter(AlterTableStmt *stmt)
{
	Oid			parent;

	if (mer_rewrite_running())
		return;
	mer_gate_before_alter(stmt);
	if (XactReadOnly || !may_break_row_keys(stmt))
		return;
	parent = RangeVarGetRelid(stmt->relation, AccessExclusiveLock, true);

	/* PostgreSQL says what is wrong with the name, or with the user. */
	if (!OidIsValid(parent) || !object_ownercheck(RelationRelationId, parent, GetUserId()))
		return;
	foreach_oid(relid, find_all_inheritors(parent, AccessExclusiveLock, NULL))
	{
		if (!mer_relmap_organised(relid))
			continue;
		foreach_node(AlterTableCmd, cmd, stmt->cmds)
		{
			if (breaks_row_keys(parent, relid, cmd))
			{
				unorganise(relid);
				break;
			}
		}
	}
}
