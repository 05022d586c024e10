/*
 * utility.c
 *	  The utility hook: class, guard, PostgreSQL's own work, then ours.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "parser/parse_node.h"
#include "tcop/cmdtag.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "coherence.h"
#include "jobs.h"
#include "meridian.h"
#include "rewrite.h"
#include "statistics.h"
#include "utility.h"

static ProcessUtility_hook_type prev_process_utility = NULL;
static bool maintenance = false;
static int	instances = 1;

bool
mer_maintenance(void)
{
	return !IsUnderPostmaster || (maintenance && superuser());
}

bool
mer_several_instances(void)
{
	return instances > 1;
}

static const char *
statement_name(Node *stmt)
{
	return GetCommandTagName(CreateCommandTag(stmt));
}

/* Refuse, or say whether there is anything to run. */
static bool
classify(Node *stmt, const MerGuardContext *context)
{
	const MerUtilityRow *row = mer_utility_row(nodeTag(stmt));
	bool		run;

	if (row == NULL)
		mer_refuse(statement_name(stmt), NULL);
	run = row->guard && row->guard(stmt, context);
	if (row->cls == MER_REFUSED && !run)
		mer_refuse(statement_name(stmt), row->note);
	return run || row->cls != MER_NOOP;
}

static void
before(Node *stmt)
{
	if (IsA(stmt, AlterSeqStmt))
		mer_sequence_before_alter((AlterSeqStmt *) stmt);
	else if (IsA(stmt, AlterTableStmt))
		mer_rewrite_before_alter((AlterTableStmt *) stmt);
	else if (IsA(stmt, ListenStmt))
		mer_listen();
}

static void
after(Node *stmt, int truncated_mark)
{
	List	   *truncated = mer_ddl_take_truncated(truncated_mark);

	switch (nodeTag(stmt))
	{
		case T_CreateSeqStmt:
			mer_sequence_created(((CreateSeqStmt *) stmt)->sequence);
			break;
		case T_AlterSeqStmt:
			mer_sequence_after_alter((AlterSeqStmt *) stmt);
			break;
		case T_TruncateStmt:
			if (((TruncateStmt *) stmt)->restart_seqs)
				mer_sequence_restart_owned(truncated);
			break;
		case T_AlterTableStmt:
			mer_sequence_adopt_local(((AlterTableStmt *) stmt)->relation);
			mer_check_attach((AlterTableStmt *) stmt);
			break;
		case T_LockStmt:
			mer_lock_table((LockStmt *) stmt);
			break;
		case T_DiscardStmt:
			if (((DiscardStmt *) stmt)->target == DISCARD_ALL ||
				((DiscardStmt *) stmt)->target == DISCARD_SEQUENCES)
				mer_sequence_discard();
			if (((DiscardStmt *) stmt)->target == DISCARD_ALL)
			{
				mer_advisory_unlock_all();
				mer_unlisten_all();
			}
			break;
		default:
			break;
	}
	list_free(truncated);
}

/* COPY into an identity column's default. */
static bool
copy(PlannedStmt *pstmt, const char *query_string, QueryEnvironment *env, QueryCompletion *qc)
{
	ParseState *pstate;
	uint64		processed;
	bool		done;

	pstate = make_parsestate(NULL);
	pstate->p_sourcetext = query_string;
	pstate->p_queryEnv = env;
	done = mer_sequence_copy(pstate, (CopyStmt *) pstmt->utilityStmt, &processed);
	free_parsestate(pstate);
	if (done && qc)
		SetQueryCompletion(qc, CMDTAG_COPY, processed);
	return done;
}

/* Statements that are run here, not by PostgreSQL. */
static bool
run_here(PlannedStmt *pstmt, const char *query_string, QueryEnvironment *env, QueryCompletion *qc)
{
	switch (nodeTag(pstmt->utilityStmt))
	{
		case T_CopyStmt:
			return copy(pstmt, query_string, env, qc);
		case T_NotifyStmt:
			return mer_notify((NotifyStmt *) pstmt->utilityStmt);
		default:
			return false;
	}
}

/* A table's shape stays as it is while a job makes its next one. */
static void
refuse_while_rewritten(Node *stmt)
{
	if (IsA(stmt, AlterTableStmt))
		mer_rewrite_refuse_ddl(((AlterTableStmt *) stmt)->relation);
	else if (IsA(stmt, IndexStmt))
		mer_rewrite_refuse_ddl(((IndexStmt *) stmt)->relation);
	else if (IsA(stmt, RenameStmt))
		mer_rewrite_refuse_ddl(((RenameStmt *) stmt)->relation);
	else if (IsA(stmt, AlterObjectSchemaStmt))
		mer_rewrite_refuse_ddl(((AlterObjectSchemaStmt *) stmt)->relation);
}

static void
mer_process_utility(PlannedStmt *pstmt, const char *query_string, bool read_only_tree,
					ProcessUtilityContext context, ParamListInfo params,
					QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	MerGuardContext guard_context = {
		.top_level = context == PROCESS_UTILITY_TOPLEVEL,
		.query_string = query_string,
	};
	int			truncated_mark;

	if (IsA(pstmt->utilityStmt, TransactionStmt))
		mer_sent_away_check((TransactionStmt *) pstmt->utilityStmt);
	mer_advisory_check();

	/* Guards edit the statement, which may belong to a cached plan. */
	if (read_only_tree && !IsA(pstmt->utilityStmt, TransactionStmt))
	{
		pstmt = copyObject(pstmt);
		read_only_tree = false;
	}
	if (!mer_maintenance() && !classify(pstmt->utilityStmt, &guard_context))
		return;

	refuse_while_rewritten(pstmt->utilityStmt);
	if (IsA(pstmt->utilityStmt, AlterTableStmt) && !mer_maintenance() &&
		mer_job_rewrites(pstmt, query_string, guard_context.top_level))
		return;
	if (IsA(pstmt->utilityStmt, AlterTableStmt) && !mer_maintenance())
		mer_validate_before((AlterTableStmt *) pstmt->utilityStmt, guard_context.top_level);
	truncated_mark = mer_ddl_truncated_mark();
	before(pstmt->utilityStmt);
	if (IsA(pstmt->utilityStmt, IndexStmt) && !mer_maintenance())
		mer_job_before_index((IndexStmt *) pstmt->utilityStmt, guard_context.top_level,
							 query_string, pstmt->stmt_location, pstmt->stmt_len);
	if (!run_here(pstmt, query_string, env, qc))
	{
		if (prev_process_utility)
			prev_process_utility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
		else
			standard_ProcessUtility(pstmt, query_string, read_only_tree, context, params, env, dest, qc);
	}
	after(pstmt->utilityStmt, truncated_mark);

	/* Parts of a statement leave what is pending to the whole. */
	if (context != PROCESS_UTILITY_SUBCOMMAND)
		mer_ddl_flush();
	if (IsA(pstmt->utilityStmt, IndexStmt))
		mer_job_after_index(pstmt, query_string, dest);
	else if (IsA(pstmt->utilityStmt, AlterTableStmt) && context != PROCESS_UTILITY_SUBCOMMAND)
		mer_validate_after(pstmt, query_string);
}

PG_FUNCTION_INFO_V1(mer_refused_function);

/* Body of built-in functions whose effect would stay in one instance's files. */
Datum
mer_refused_function(PG_FUNCTION_ARGS)
{
	mer_refuse(psprintf("function %s", get_func_name(fcinfo->flinfo->fn_oid)),
			   "It keeps state in files of one instance.");
}

void
mer_utility_init(void)
{
	DefineCustomBoolVariable("meridian.maintenance",
							 "Lets the internal superuser run statements that are refused to users.",
							 NULL, &maintenance, false, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("meridian.instances",
							"Number of instances of this cluster.",
							NULL, &instances, 1, 1, 1024, PGC_SIGHUP, 0, NULL, NULL, NULL);
	prev_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = mer_process_utility;
	mer_ddl_init();
	mer_isolation_init();
	mer_advisory_init();
	mer_jobs_init();
	mer_notify_init();
	mer_statistics_init();
}
