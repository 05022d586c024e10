/*
 * locktable.c
 *	  LOCK TABLE among all instances.
 *
 * PostgreSQL's own lock keeps the other sessions of this instance waiting.
 * Those of other instances are met at COMMIT: what excludes writers joins the
 * write set as a lock of the whole relation (docs/formats.md), so that one of
 * two that should have excluded each other gets 40001.  Modes that exclude
 * nobody but DDL and readers need nothing: DDL takes part in the conflict check
 * anyway, and readers see one instant.
 *
 * A gate (gate.c) lets those win that exclude writers and themselves: commits of
 * writers elsewhere wait for them, for a bounded time.  Those in mode SHARE could
 * not have one together.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "access/table.h"
#include "nodes/nodeFuncs.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lockdefs.h"
#include "storage/proc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "store.h"
#include "utility.h"

/*
 * SHARE UPDATE EXCLUSIVE lets writers by, but neither itself nor SHARE: it
 * locks a key that no row has, and SHARE shares that key.  The modes above
 * exclude locks of any key.
 */
static const char no_row[1] = {0};

typedef struct ViewWalk
{
	LOCKMODE	mode;
} ViewWalk;

/* Tables behind this transaction's gate; a gate is asked for whole each time. */
static List *behind_gate = NIL;
static LocalTransactionId behind_gate_lxid = InvalidLocalTransactionId;

static void lock_view(Oid view, LOCKMODE mode);

void
mer_txn_lock_relation(Relation table)
{
	mer_lock_row(mer_rel(table)->sid, "", 0, LockTupleNoKeyExclusive);
}

static void
lock_one(Oid relid, LOCKMODE mode)
{
	int64		sid = mer_relmap_sid(relid, true);

	/* No rows of its own, temporary, or nobody else knows it yet. */
	if (sid == 0 || mer_txn_created(sid))
		return;
	switch (mode)
	{
		case ShareUpdateExclusiveLock:
			mer_lock_row(sid, no_row, sizeof(no_row), LockTupleNoKeyExclusive);
			break;
		case ShareLock:
			mer_lock_row(sid, "", 0, LockTupleShare);
			mer_lock_row(sid, no_row, sizeof(no_row), LockTupleShare);
			break;
		default:
			mer_lock_row(sid, "", 0, LockTupleNoKeyExclusive);
			behind_gate = list_append_unique_oid(behind_gate, relid);
			break;
	}
}

static void
lock_relation(Oid relid, bool with_children, LOCKMODE mode)
{
	if (get_rel_relkind(relid) == RELKIND_VIEW)
		lock_view(relid, mode);
	else if (with_children)
	{
		foreach_oid(member, find_all_inheritors(relid, NoLock, NULL))
			lock_one(member, mode);
	}
	else
		lock_one(relid, mode);
}

static bool
lock_view_walker(Node *node, void *arg)
{
	ViewWalk   *walk = arg;

	if (node == NULL)
		return false;
	if (!IsA(node, Query))
		return expression_tree_walker(node, lock_view_walker, arg);
	foreach_node(RangeTblEntry, rte, ((Query *) node)->rtable)
	{
		if (rte->rtekind == RTE_RELATION)
			lock_relation(rte->relid, rte->inh, walk->mode);
	}
	return query_tree_walker((Query *) node, lock_view_walker, arg, QTW_IGNORE_JOINALIASES);
}

/* The tables that a view reads, as PostgreSQL has locked them. */
static void
lock_view(Oid view, LOCKMODE mode)
{
	ViewWalk	walk = {.mode = mode};
	Relation	rel = table_open(view, NoLock);

	(void) lock_view_walker((Node *) get_view_query(rel), &walk);
	table_close(rel, NoLock);
}

/* After the statement has run: its relations are locked here, so their names hold. */
void
mer_lock_table(LockStmt *stmt)
{
	MemoryContext old;
	int			had;

	if (stmt->mode < ShareUpdateExclusiveLock)
		return;
	if (behind_gate_lxid != MyProc->vxid.lxid)
		behind_gate = NIL;
	behind_gate_lxid = MyProc->vxid.lxid;
	had = list_length(behind_gate);
	old = MemoryContextSwitchTo(TopTransactionContext);
	foreach_node(RangeVar, name, stmt->relations)
		lock_relation(RangeVarGetRelid(name, NoLock, false), name->inh, stmt->mode);
	MemoryContextSwitchTo(old);
	if (list_length(behind_gate) > had)
		mer_gate(behind_gate);
}
