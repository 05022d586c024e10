/*
 * hooks.c
 *	  Executor hooks: does the statement need TIDs, and the end of statements.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "executor/executor.h"
#include "nodes/plannodes.h"
#include "tcop/utility.h"
#include "tcop/pquery.h"
#include "utils/portal.h"

#include "store.h"

/* Private bits in es_top_eflags; the core uses the low byte. */
#define EFLAG_NO_TIDS 0x10000
#define EFLAG_TID_KEYS 0x20000

static ExecutorStart_hook_type next_start;
static ExecutorRun_hook_type next_run;
static ExecutorFinish_hook_type next_finish;
static ProcessUtility_hook_type next_utility;

/* Outside of the executor, TIDs are kept: whoever scans may come back with one. */
static MerTidMode tid_mode = MER_TIDS_ROWS;

MerTidMode
mer_tid_mode(void)
{
	return tid_mode;
}

static bool
names_ctid(PlannedStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->permInfos)
	{
		RTEPermissionInfo *info = lfirst(lc);

		if (bms_is_member(SelfItemPointerAttributeNumber - FirstLowInvalidHeapAttributeNumber,
						  info->selectedCols))
			return true;
	}
	return false;
}

/*
 * A plain SELECT never comes back with a TID, except through a cursor (WHERE
 * CURRENT OF) or by naming ctid.
 */
static int
tid_flags(QueryDesc *desc)
{
	PlannedStmt *stmt = desc->plannedstmt;

	if (stmt->commandType != CMD_SELECT || stmt->hasModifyingCTE || stmt->rowMarks != NIL)
		return 0;
	if (names_ctid(stmt))
		return EFLAG_TID_KEYS;
	if (ActivePortal && ActivePortal->name[0] != '\0')
		return EFLAG_TID_KEYS;
	return EFLAG_NO_TIDS;
}

static void
start_hook(QueryDesc *desc, int eflags)
{
	eflags |= tid_flags(desc);
	if (next_start)
		next_start(desc, eflags);
	else
		standard_ExecutorStart(desc, eflags);
}

static MerTidMode
mode_of(QueryDesc *desc)
{
	int			flags = desc->estate ? desc->estate->es_top_eflags : 0;

	if (flags & EFLAG_NO_TIDS)
		return MER_TIDS_NONE;
	return flags & EFLAG_TID_KEYS ? MER_TIDS_KEYS : MER_TIDS_ROWS;
}

static void
run_hook(QueryDesc *desc, ScanDirection direction, uint64 count)
{
	MerTidMode	saved = tid_mode;

	tid_mode = mode_of(desc);
	PG_TRY();
	{
		if (next_run)
			next_run(desc, direction, count);
		else
			standard_ExecutorRun(desc, direction, count);
		mer_checks_flush();
	}
	PG_FINALLY();
	{
		tid_mode = saved;
	}
	PG_END_TRY();
}

static void
finish_hook(QueryDesc *desc)
{
	MerTidMode	saved = tid_mode;

	tid_mode = MER_TIDS_ROWS;
	PG_TRY();
	{
		mer_checks_flush();
		if (next_finish)
			next_finish(desc);
		else
			standard_ExecutorFinish(desc);
		mer_checks_flush();
	}
	PG_FINALLY();
	{
		tid_mode = saved;
	}
	PG_END_TRY();
}

static void
utility_hook(PlannedStmt *pstmt, const char *query, bool readonly_tree,
			 ProcessUtilityContext context, ParamListInfo params,
			 QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	MerTidMode	saved = tid_mode;

	tid_mode = MER_TIDS_ROWS;
	PG_TRY();
	{
		if (next_utility)
			next_utility(pstmt, query, readonly_tree, context, params, env, dest, qc);
		else
			standard_ProcessUtility(pstmt, query, readonly_tree, context, params, env, dest, qc);
		mer_checks_flush();
	}
	PG_FINALLY();
	{
		tid_mode = saved;
	}
	PG_END_TRY();
}

void
mer_hooks_init(void)
{
	next_start = ExecutorStart_hook;
	ExecutorStart_hook = start_hook;
	next_run = ExecutorRun_hook;
	ExecutorRun_hook = run_hook;
	next_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = finish_hook;
	next_utility = ProcessUtility_hook;
	ProcessUtility_hook = utility_hook;
}
