/*
 * ddlcheck.c
 *	  What must hold when a utility statement ends.
 *
 * Validation reads rows as of tau_start, which may lie before the statement
 * locked the table: rows written in between must abort the transaction, so the
 * tables are locked at the adjudicator too.  Indexes that PostgreSQL took over
 * by their file alone are built.  No table has lost the key by
 * which its rows are keyed.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "catalog/namespace.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "store.h"
#include "utility.h"

/* Of the running statement, in TopTransactionContext. */
static List *constraints = NIL;
static List *new_indexes = NIL;
static List *lost_keys = NIL;
static List *rewritten = NIL;

typedef struct Note
{
	SubTransactionId subxact;
	Oid			oid;
} Note;

/* The primary key by which a table's rows are keyed, as it was before it was dropped. */
typedef struct LostKey
{
	SubTransactionId subxact;	/* first, as in Note */
	Oid			table;
	int			n;
	MerKeyColumn columns[FLEXIBLE_ARRAY_MEMBER];
} LostKey;

static void
note(List **list, Oid oid)
{
	MemoryContext old;
	Note	   *made;

	foreach_ptr(Note, present, *list)
	{
		if (present->oid == oid)
		{
			present->subxact = Min(present->subxact, GetCurrentSubTransactionId());
			return;
		}
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	made = palloc(sizeof(Note));
	made->subxact = GetCurrentSubTransactionId();
	made->oid = oid;
	*list = lappend(*list, made);
	MemoryContextSwitchTo(old);
}

/*
 * Is VALIDATE CONSTRAINT what changes a constraint?  All commits since it was
 * added NOT VALID keep to it, and a tau_start before that is refused for its
 * catalog version: the rows that were there then are checked as of tau_start,
 * and nobody has to be kept out.  The catalog caches still show the constraint
 * as it was.
 */
static bool
is_validation(Oid constraint)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));
	Form_pg_constraint con;
	bool		validation;

	if (!HeapTupleIsValid(tuple))
		return false;
	con = (Form_pg_constraint) GETSTRUCT(tuple);
	validation = con->conenforced && !con->convalidated && OidIsValid(con->conrelid) &&
		!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	ReleaseSysCache(tuple);
	return validation;
}

void
mer_check_note_constraint(Oid constraint, bool altered)
{
	if (!altered || !is_validation(constraint))
		note(&constraints, constraint);
}

void
mer_check_note_index(Oid index)
{
	note(&new_indexes, index);
}

static bool
is_primary(Oid index)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool		primary = HeapTupleIsValid(tuple) && ((Form_pg_index) GETSTRUCT(tuple))->indisprimary;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return primary;
}

/* The index is about to be dropped; the catalog still has it. */
void
mer_check_note_drop(Oid relid)
{
	MemoryContext old;
	Relation	table;
	MerRel	   *mr;
	LostKey    *lost;
	Oid			table_oid;

	if (get_rel_relkind(relid) != RELKIND_INDEX || !is_primary(relid))
		return;
	table_oid = IndexGetRelation(relid, true);
	if (!OidIsValid(table_oid) || !mer_relmap_organised(table_oid))
		return;
	table = table_open(table_oid, NoLock);
	mr = mer_rel(table);
	old = MemoryContextSwitchTo(TopTransactionContext);
	lost = palloc(offsetof(LostKey, columns) + mr->nkeys * sizeof(MerKeyColumn));
	lost->subxact = GetCurrentSubTransactionId();
	lost->table = table_oid;
	lost->n = mr->nkeys;
	memcpy(lost->columns, mr->keys, mr->nkeys * sizeof(MerKeyColumn));
	lost_keys = lappend(lost_keys, lost);
	MemoryContextSwitchTo(old);
	table_close(table, NoLock);
}

void
mer_check_note_rewrite(Oid relid)
{
	note(&rewritten, relid);
}

void
mer_check_forget(void)
{
	constraints = NIL;
	new_indexes = NIL;
	lost_keys = NIL;
	rewritten = NIL;
}

static List *
without_subxact(List *notes, SubTransactionId subxact)
{
	foreach_ptr(Note, made, notes)
	{
		if (made->subxact >= subxact)
			notes = foreach_delete_current(notes, made);
	}
	return notes;
}

void
mer_check_forget_subxact(SubTransactionId subxact)
{
	constraints = without_subxact(constraints, subxact);
	new_indexes = without_subxact(new_indexes, subxact);
	lost_keys = without_subxact(lost_keys, subxact);
	rewritten = without_subxact(rewritten, subxact);
}

/* Rows that others wrote after tau_start, or write from now on, conflict. */
static void
lock_table(Oid relid)
{
	int64		sid = mer_relmap_sid(relid, true);
	Relation	rel;

	if (sid == 0 || mer_txn_created(sid))
		return;
	rel = table_open(relid, NoLock);
	mer_txn_lock_relation(rel);
	table_close(rel, NoLock);
}

static bool
is_new_and_empty(Oid relid)
{
	int64		sid = mer_relmap_sid(relid, true);
	MerBuf	   *buf;

	if (sid == 0 || !mer_txn_created(sid))
		return false;
	buf = mer_buf_find(sid);
	return buf == NULL || buf->nentries == 0;
}

/*
 * Tables with columns of a domain, or of one over it.  In types made of it
 * PostgreSQL refuses new constraints, if a table has such a column.
 */
static List *
tables_of_domain(Oid type, List *tables)
{
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *domains = NIL;

	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(TypeRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(type));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend row = (Form_pg_depend) GETSTRUCT(tuple);

		if (row->classid == TypeRelationId && get_typtype(row->objid) == TYPTYPE_DOMAIN)
			domains = lappend_oid(domains, row->objid);
		else if (row->classid == RelationRelationId && row->objsubid > 0)
			tables = list_append_unique_oid(tables, row->objid);
	}
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	foreach_oid(domain, domains)
		tables = tables_of_domain(domain, tables);
	return tables;
}

static void
lock_users_of_domain(Oid type)
{
	foreach_oid(table, tables_of_domain(type, NIL))
	{
		LockRelationOid(table, AccessShareLock);
		lock_table(table);
	}
}

static void
lock_validated(Oid constraint)
{
	HeapTuple	tuple = SearchSysCache1(CONSTROID, ObjectIdGetDatum(constraint));
	FormData_pg_constraint con;

	if (!HeapTupleIsValid(tuple))
		return;
	memcpy(&con, GETSTRUCT(tuple), sizeof(con));
	ReleaseSysCache(tuple);
	if (OidIsValid(con.contypid) && con.convalidated)
		lock_users_of_domain(con.contypid);
	if (!OidIsValid(con.conrelid) || !con.convalidated || is_new_and_empty(con.conrelid))
		return;
	if (con.contype == CONSTRAINT_CHECK || con.contype == CONSTRAINT_NOTNULL ||
		con.contype == CONSTRAINT_FOREIGN)
		lock_table(con.conrelid);
	if (con.contype == CONSTRAINT_FOREIGN)
		lock_table(con.confrelid);
}

static void
lock_with_children(Oid relid)
{
	foreach_oid(child, find_all_inheritors(relid, NoLock, NULL))
		lock_table(child);
}

/* The partition's rows, and those of the default partition, are checked. */
void
mer_check_attach(AlterTableStmt *stmt)
{
	Oid			parent = RangeVarGetRelid(stmt->relation, NoLock, true);

	foreach_node(AlterTableCmd, cmd, stmt->cmds)
	{
		Oid			other;

		if (cmd->subtype != AT_AttachPartition || !OidIsValid(parent))
			continue;
		if (get_rel_relkind(parent) != RELKIND_PARTITIONED_TABLE)
			continue;
		other = RangeVarGetRelid(((PartitionCmd *) cmd->def)->name, NoLock, true);
		if (OidIsValid(other))
			lock_with_children(other);
		other = get_default_partition_oid(parent);
		if (OidIsValid(other))
			lock_with_children(other);
	}
}

/* ALTER TYPE that keeps the entries takes over an index's file, which has none. */
static void
build_if_bare(Oid index)
{
	ReindexParams params = {0};
	Oid			table;

	if (get_rel_relkind(index) != RELKIND_INDEX || mer_relmap_sid(index, true) != 0 ||
		get_rel_persistence(index) == RELPERSISTENCE_TEMP)
		return;
	table = IndexGetRelation(index, true);
	if (!OidIsValid(table) || mer_relmap_sid(table, true) == 0)
		return;
	if (mer_relmap_organised(table) && is_primary(index))
		return;
	reindex_index(NULL, index, false, RELPERSISTENCE_PERMANENT, &params);
	CommandCounterIncrement();
}

static bool
same_key(const MerKeyColumn *a, const MerKeyColumn *b)
{
	return a->attnum == b->attnum && a->opfamily == b->opfamily && a->typid == b->typid &&
		a->collation == b->collation && a->desc == b->desc && a->nulls_first == b->nulls_first;
}

static bool
key_is_back(Relation rel, const LostKey *lost)
{
	MerRel	   *mr = mer_rel(rel);

	if (mr->nkeys != lost->n)
		return false;
	for (int i = 0; i < lost->n; i++)
		if (!same_key(&mr->keys[i], &lost->columns[i]))
			return false;
	return true;
}

/*
 * ALTER TYPE may make the same key again; any other leaves rows under keys of the
 * old one, if there are rows.
 */
static void
check_key(const LostKey *lost)
{
	Relation	rel;
	bool		has_key;

	if (mer_rewrite_running() ||
		!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(lost->table)) ||
		!mer_relmap_organised(lost->table))
		return;
	rel = table_open(lost->table, NoLock);
	has_key = OidIsValid(RelationGetPrimaryKeyIndex(rel, true));
	if (is_new_and_empty(lost->table))
	{
		if (!has_key)
			mer_relmap_unorganise(rel);
	}
	else if (!has_key || !key_is_back(rel, lost))
		mer_refuse("changing a primary key as a side effect",
				   "Drop the primary key with ALTER TABLE ... DROP CONSTRAINT first.");
	table_close(rel, NoLock);
}

/*
 * A rewrite leaves a transaction number as the oldest that rows may bear.  Ours
 * bear none, and autovacuum must not wait for them.
 */
static void
clear_frozen(Oid relid)
{
	Relation	pg_class = table_open(RelationRelationId, RowExclusiveLock);
	HeapTuple	tuple = SearchSysCacheCopy1(RELOID, ObjectIdGetDatum(relid));

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);

		form->relfrozenxid = InvalidTransactionId;
		form->relminmxid = InvalidMultiXactId;
		CatalogTupleUpdate(pg_class, &tuple->t_self, tuple);
		heap_freetuple(tuple);
	}
	table_close(pg_class, RowExclusiveLock);
}

void
mer_check_flush(void)
{
	List	   *validated = constraints;
	List	   *indexes = new_indexes;
	List	   *keys = lost_keys;
	List	   *swapped = rewritten;

	if (validated == NIL && indexes == NIL && keys == NIL && swapped == NIL)
		return;
	mer_check_forget();
	CommandCounterIncrement();
	foreach_ptr(Note, constraint, validated)
		lock_validated(constraint->oid);
	foreach_ptr(Note, index, indexes)
		build_if_bare(index->oid);
	foreach_ptr(LostKey, lost, keys)
		check_key(lost);
	foreach_ptr(Note, relation, swapped)
		clear_frozen(relation->oid);
	CommandCounterIncrement();
}
