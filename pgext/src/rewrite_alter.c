/*
 * rewrite_alter.c
 *	  ALTER TABLE by PostgreSQL's own code, which believes that the table is empty.
 *
 * Run once to see what it would do to the catalog (and rolled back), and once
 * more when all new rows are there: the transient table and the indexes that a
 * rewrite fills then take over the storage ids that a job has filled.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/resowner.h"

#include "rewrite.h"
#include "store.h"
#include "utility.h"

#define OP_ALTER 11
#define ALTER_COMPLETE 1

/* The statement that runs. */
static struct
{
	Oid			relid;			/* InvalidOid: none */
	Oid			rows;			/* what the table takes over; InvalidOid: a trial */
	bool		organised;
	bool		rewrites;		/* a transient table was made */
	bool		swapped;
} run;

bool
mer_rewrite_running(void)
{
	return OidIsValid(run.relid);
}

/* In a trial from the start; else from when the new rows stand in for the old. */
bool
mer_rewrite_hides_rows(Oid relid)
{
	return OidIsValid(relid) && run.relid == relid && (run.rewrites || !OidIsValid(run.rows));
}

/* The table that a rewrite of ours fills?  True: it has its storage id. */
bool
mer_rewrite_new_table(Relation rel)
{
	char		name[NAMEDATALEN];

	if (!OidIsValid(run.relid))
		return false;
	snprintf(name, sizeof(name), "pg_temp_%u", run.relid);
	if (strcmp(RelationGetRelationName(rel), name) != 0)
		return false;
	run.rewrites = true;
	if (!OidIsValid(run.rows))
		return false;
	mer_relmap_adopt(RelationGetRelid(rel), run.rows, false);
	return true;
}

void
mer_rewrite_swapped(Oid relid)
{
	if (!OidIsValid(run.relid) || run.relid != relid || !OidIsValid(run.rows))
		return;
	run.swapped = true;
	if (run.organised)
	{
		Relation	table = table_open(relid, NoLock);

		mer_relmap_organise(table, NULL);
		table_close(table, NoLock);
	}
}

/* ---------- indexes ---------- */

static bool
same_columns(Relation a, Relation b)
{
	for (int i = 0; i < a->rd_index->indnatts; i++)
	{
		if (a->rd_index->indkey.values[i] != b->rd_index->indkey.values[i])
			return false;
		if (i < a->rd_index->indnkeyatts &&
			(a->rd_opfamily[i] != b->rd_opfamily[i] || a->rd_opcintype[i] != b->rd_opcintype[i] ||
			 a->rd_indcollation[i] != b->rd_indcollation[i] || a->rd_indoption[i] != b->rd_indoption[i]))
			return false;
	}
	return true;
}

/* Has every row the same entry in both? */
static bool
same_index(Relation a, Relation b)
{
	return a->rd_index->indnatts == b->rd_index->indnatts &&
		a->rd_index->indnkeyatts == b->rd_index->indnkeyatts &&
		a->rd_index->indisunique == b->rd_index->indisunique &&
		a->rd_index->indnullsnotdistinct == b->rd_index->indnullsnotdistinct &&
		same_columns(a, b) &&
		equal(RelationGetIndexExpressions(a), RelationGetIndexExpressions(b)) &&
		equal(RelationGetIndexPredicate(a), RelationGetIndexPredicate(b));
}

static void
ship_complete(int64 sid)
{
	StringInfoData op;

	initStringInfo(&op);
	mp_put_array(&op, 3);
	mp_put_int(&op, OP_ALTER);
	mp_put_int(&op, sid);
	mp_put_int(&op, ALTER_COMPLETE);
	mer_txn_schema_op(op.data, op.len);
	pfree(op.data);
}

static bool
adopt_if_same(Relation index, Oid candidate)
{
	Relation	made;
	bool		same;

	/* Taken by another index that is just the same. */
	if (mer_relmap_sid(candidate, true) == 0)
		return false;
	made = index_open(candidate, NoLock);
	same = same_index(index, made);
	index_close(made, NoLock);
	if (!same)
		return false;
	mer_relmap_adopt(RelationGetRelid(index), candidate, false);
	if (RelationGetIndexPredicate(index) == NIL)
		ship_complete(mer_relmap_sid(RelationGetRelid(index), false));
	return true;
}

static void
take_index(Relation index)
{
	Relation	rows = table_open(run.rows, NoLock);
	List	   *made = RelationGetIndexList(rows);

	table_close(rows, NoLock);
	foreach_oid(candidate, made)
	{
		if (adopt_if_same(index, candidate))
			return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("index \"%s\" was changed while its table was rewritten",
					RelationGetRelationName(index)),
			 errhint("Run ALTER TABLE again.")));
}

/* Instead of a build.  True: nothing is left to do. */
bool
mer_rewrite_takes_index(Relation heap, Relation index)
{
	if (!OidIsValid(run.relid) || RelationGetRelid(heap) != run.relid)
		return false;
	if (!OidIsValid(run.rows))
		return true;
	if (mer_rel(index)->primary_of_organised)
		mer_relmap_drop(RelationGetRelid(index));
	else
		take_index(index);
	return true;
}

/* ---------- running the statement ---------- */

static PlannedStmt *
wrap(AlterTableStmt *stmt)
{
	PlannedStmt *wrapper = makeNode(PlannedStmt);

	wrapper->commandType = CMD_UTILITY;
	wrapper->utilityStmt = (Node *) copyObject(stmt);
	wrapper->stmt_location = wrapper->stmt_len = -1;
	return wrapper;
}

static void
forget(void)
{
	memset(&run, 0, sizeof(run));
}

static bool
try_in_subxact(Oid relid, AlterTableStmt *stmt, void (*inspect) (Oid, void *), void *arg)
{
	bool		rewrites;

	standard_ProcessUtility(wrap(stmt), "ALTER TABLE", false, PROCESS_UTILITY_QUERY, NULL, NULL,
							None_Receiver, NULL);
	CommandCounterIncrement();
	rewrites = run.rewrites;
	if (rewrites)
		inspect(relid, arg);
	return rewrites;
}

bool
mer_rewrite_try(Oid relid, AlterTableStmt *stmt, void (*inspect) (Oid relid, void *arg), void *arg)
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	volatile bool rewrites = false;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		run.relid = relid;
		rewrites = try_in_subxact(relid, stmt, inspect, arg);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	forget();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	if (error)
		ReThrowError(error);
	return rewrites;
}

void
mer_rewrite_switch(Oid relid, Oid rows, bool organised, AlterTableStmt *stmt)
{
	bool		swapped;

	PG_TRY();
	{
		run.relid = relid;
		run.rows = rows;
		run.organised = organised;
		ProcessUtility(wrap(stmt), "ALTER TABLE", false, PROCESS_UTILITY_QUERY, NULL, NULL,
					   None_Receiver, NULL);
		CommandCounterIncrement();
		swapped = run.swapped;
	}
	PG_FINALLY();
	{
		forget();
	}
	PG_END_TRY();
	if (!swapped)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the table was changed while it was rewritten"),
				 errhint("Run ALTER TABLE again.")));
}
