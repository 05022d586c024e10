/*
 * replan.c
 *	  Statements that begin in a transaction older than the catalog.
 *
 * The data plane refuses a request as of tau_start for a relation that a later
 * version concerns, if this instance has applied that version.  A plan made of
 * the new catalog may do without any request: a partition is gone, a new
 * constraint says that no row can match.  So if the catalog has moved since
 * tau_start was taken, which is rare, the data plane is asked for each relation
 * of a statement before it begins.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "executor/executor.h"
#include "nodes/plannodes.h"

#include "coherence.h"
#include "store.h"

static ExecutorStart_hook_type next_start = NULL;

/* A request for no rows is compared as any other. */
static void
ask(int64 sid)
{
	mer_page_free(mer_page_wait(mer_send_get(sid, NULL, 0, NULL, 0), 0, false, false));
}

/* With no partition left there is nobody to ask; better be refused than wrong. */
static void
check_relation(Oid relid, char relkind)
{
	bool		asked = false;

	foreach_oid(member, find_all_inheritors(relid, NoLock, NULL))
	{
		int64		sid = mer_relmap_sid(member, true);

		if (sid != 0 && !mer_txn_created(sid))
			ask(sid);
		asked = asked || sid != 0;
	}
	if (!asked && relkind == RELKIND_PARTITIONED_TABLE)
		mer_schema_changed();
}

static void
start_hook(QueryDesc *desc, int eflags)
{
	if (mer_txn.tau != 0 && !mer_txn.shipping && mer_version_at_start() != 0 &&
		mer_last_change() > mer_version_at_start())
	{
		foreach_node(RangeTblEntry, rte, desc->plannedstmt->rtable)
		{
			if (rte->rtekind == RTE_RELATION &&
				(rte->relkind == RELKIND_RELATION || rte->relkind == RELKIND_PARTITIONED_TABLE ||
				 rte->relkind == RELKIND_MATVIEW))
				check_relation(rte->relid, rte->relkind);
		}
	}
	if (next_start)
		next_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
}

void
mer_replan_init(void)
{
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = start_hook;
}
