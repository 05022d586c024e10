/*
 * gate.c
 *	  Gates: DDL that reads all rows of a table gets through although sessions
 *	  of other instances write it all the time.
 *
 * Such a statement fails if a row was written after its tau_start.  Here its
 * lock keeps writers out; elsewhere the adjudicator holds their commits from
 * before tau_start is taken to the outcome of this transaction (docs/rfcs,
 * "Catalog coherence", point 8).  Without the gate nothing would be wrong, only
 * refused.
 *
 * The lock comes first: a local writer that has the table locked could not
 * commit through the gate.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "store.h"
#include "utility.h"
#include "wire.h"

#define GATE_MS 60000			/* as in limits.py */
#define GATE_END_MS 1000
#define GATE_RELATIONS 4096

static bool gated = false;

static bool
several_instances(void)
{
	const char *n = GetConfigOption("meridian.instances", true, false);

	return n != NULL && atoi(n) > 1;
}

static void
put_gate(StringInfo buf, const int64 *sids, int n, int hold_ms)
{
	mp_put_bin(buf, mer_commit_txid(), MER_TXID_BYTES);
	mp_put_array(buf, n);
	for (int i = 0; i < n; i++)
		mp_put_int(buf, sids[i]);
	mp_put_int(buf, hold_ms);
}

/* With tau_start taken it would come too late; what storage does not have yet needs none. */
static void
hold_writers(List *relids)
{
	int64		sids[GATE_RELATIONS];
	int			n = 0;
	StringInfoData buf;
	uint32		id;
	MerReply	reply;

	if (mer_txn.tau != 0)
		return;
	foreach_oid(relid, relids)
	{
		int64		sid = mer_relmap_sid(relid, true);

		if (sid != 0 && !mer_txn_created(sid) && n < GATE_RELATIONS)
			sids[n++] = sid;
	}
	if (n == 0)
		return;
	initStringInfo(&buf);
	id = mer_wire_begin(&buf, MER_GATE, 5);
	put_gate(&buf, sids, n, GATE_MS);
	gated = true;
	reply = mer_wire_call(&buf, id);
	pfree(reply.frame);
	pfree(buf.data);
}

/* A single instance keeps its writers out by its own locks. */
void
mer_gate(List *relids)
{
	if (several_instances())
		hold_writers(relids);
}

/* For who takes no lock that would keep even local writers out. */
void
mer_gate_for_all(Oid relid)
{
	hold_writers(list_make1_oid(relid));
}

/* ---------- which relations a statement will read ---------- */

static List *
with_children(Oid relid, LOCKMODE lock)
{
	return find_all_inheritors(relid, lock, NULL);
}

/* The named relation as the statement will lock it, if the user may go that far. */
static Oid
lock_named(const RangeVar *name, LOCKMODE lock)
{
	Oid			relid = RangeVarGetRelid(name, NoLock, true);

	if (!OidIsValid(relid) || !object_ownercheck(RelationRelationId, relid, GetUserId()))
		return InvalidOid;
	return RangeVarGetRelid(name, lock, true) == relid ? relid : InvalidOid;
}

static List *
of_constraint(const Constraint *con, List *relids)
{
	Oid			other;

	if (con->contype != CONSTR_FOREIGN || con->skip_validation || con->pktable == NULL)
		return relids;
	other = RangeVarGetRelid(con->pktable, NoLock, true);
	return OidIsValid(other) ? list_concat_unique_oid(relids, with_children(other, NoLock)) : relids;
}

static List *
of_attach(Oid parent, const PartitionCmd *cmd, List *relids)
{
	Oid			other = lock_named(cmd->name, AccessExclusiveLock);

	if (OidIsValid(other))
		relids = list_concat_unique_oid(relids, with_children(other, AccessExclusiveLock));
	if (get_rel_relkind(parent) == RELKIND_PARTITIONED_TABLE)
	{
		other = get_default_partition_oid(parent);
		if (OidIsValid(other))
			relids = list_concat_unique_oid(relids, with_children(other, AccessExclusiveLock));
	}
	return relids;
}

/* May the command read the rows?  A little too often is no harm. */
static bool
reads_rows(const AlterTableCmd *cmd)
{
	switch (cmd->subtype)
	{
		case AT_AddColumn:
			return castNode(ColumnDef, cmd->def)->raw_default != NULL ||
				castNode(ColumnDef, cmd->def)->constraints != NIL;
		case AT_AddConstraint:
			return !castNode(Constraint, cmd->def)->skip_validation;
		case AT_AlterColumnType:
		case AT_SetNotNull:
		case AT_SetExpression:
		case AT_AddIndex:
		case AT_AddIndexConstraint:
		case AT_AlterConstraint:
		case AT_DropConstraint: /* of the key that rows are keyed by: they move */
		case AT_DropColumn:
			return true;
		default:
			return false;
	}
}

void
mer_gate_before_alter(AlterTableStmt *stmt)
{
	bool		reads = false;
	bool		attaches = false;
	LOCKMODE	lock;
	Oid			relid;
	List	   *relids = NIL;

	if (mer_txn.tau != 0 || XactReadOnly || stmt->objtype != OBJECT_TABLE || !several_instances())
		return;
	foreach_node(AlterTableCmd, cmd, stmt->cmds)
	{
		reads = reads || reads_rows(cmd);
		attaches = attaches || cmd->subtype == AT_AttachPartition;
	}
	if (!reads && !attaches)
		return;
	lock = AlterTableGetLockLevel(stmt->cmds);
	relid = lock_named(stmt->relation, lock);
	if (!OidIsValid(relid))
		return;
	if (reads)
		relids = with_children(relid, lock);
	foreach_node(AlterTableCmd, cmd, stmt->cmds)
	{
		if (cmd->subtype == AT_AddConstraint)
			relids = of_constraint(castNode(Constraint, cmd->def), relids);
		else if (cmd->subtype == AT_AttachPartition)
			relids = of_attach(relid, castNode(PartitionCmd, cmd->def), relids);
	}
	mer_gate(relids);
}

void
mer_gate_before_truncate(TruncateStmt *stmt)
{
	List	   *relids = NIL;

	if (mer_txn.tau != 0 || XactReadOnly || !several_instances())
		return;
	foreach_node(RangeVar, name, stmt->relations)
	{
		Oid			relid = lock_named(name, AccessExclusiveLock);

		if (OidIsValid(relid))
			relids = list_concat_unique_oid(relids, name->inh
											? with_children(relid, AccessExclusiveLock)
											: list_make1_oid(relid));
	}
	mer_gate(relids);
}

/* ---------- end ---------- */

/*
 * The outcome of a commit ends the gate.  What was rolled back, or changed
 * nothing after all, has no outcome.  Who cannot end it leaves that to time.
 */
static void
at_xact(XactEvent event, void *arg)
{
	bool		ends = event == XACT_EVENT_ABORT ||
		(event == XACT_EVENT_COMMIT && !mer_txn.committed);

	if (ends && gated && mer_wire_connected())
	{
		StringInfoData buf;
		uint32		id;
		MerReply	reply;

		initStringInfo(&buf);
		id = mer_wire_begin(&buf, MER_GATE, 5);
		put_gate(&buf, NULL, 0, 0);
		(void) mer_wire_try_call(&buf, id, GATE_END_MS, &reply);
	}
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_COMMIT)
		gated = false;
}

void
mer_gate_init(void)
{
	RegisterXactCallback(at_xact, NULL);
}
