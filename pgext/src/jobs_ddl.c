/*
 * jobs_ddl.c
 *	  CREATE INDEX as a job: the order, the wait, the cancel.
 *
 * The statement adds the index as "building" (indisready, not indisvalid: all
 * later transactions maintain it, none reads it) and commits that together with
 * the job.  Then it waits, unless it said ASYNC.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "commands/defrem.h"
#include "commands/progress.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/backend_progress.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/portal.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/wait_event.h"

#include "catdelta.h"
#include "jobs.h"
#include "rewrite.h"
#include "utility.h"
#include "wire.h"

#define WAIT_FIRST_MS 2
#define WAIT_LAST_MS 100
#define CATALOG_WAIT_MS 5000
#define CATALOG_MISSING_MS 500
#define CATALOG_POLL_MS 2
#define CANCEL_ATTEMPTS 8
#define CHANNEL "meridian_jobs"

bool		mer_job_building = false;

static int	job_rows = 1000;	/* GUC meridian.index_job_rows */

/* The IndexStmt that runs. */
static struct
{
	bool		active;
	bool		async;
	List	   *targets;		/* indexes left to the job; in TopTransactionContext */
	Oid			built;			/* an index built at once after all */
} order;

/* ---------- before the statement ---------- */

/* Does the statement's text name the index async, without quotes? */
static bool
says_async(const char *text, int location, int len)
{
	const char *p = text + Max(location, 0);
	const char *end = len > 0 ? p + len : p + strlen(p);

	for (; p + 5 <= end; p++)
	{
		if (*p == '(')
			return false;
		if (pg_strncasecmp(p, "async", 5) == 0)
			return p > text && p[-1] != '"';
	}
	return false;
}

/* CREATE INDEX ASYNC ON ..., CREATE INDEX name ON ... WITH (async) */
static bool
takes_async(IndexStmt *stmt, const char *text, int location, int len)
{
	bool		async = false;

	if (stmt->idxname && strcmp(stmt->idxname, "async") == 0 && says_async(text, location, len))
	{
		stmt->idxname = NULL;
		async = true;
	}
	foreach_node(DefElem, option, stmt->options)
	{
		if (strcmp(option->defname, "async") != 0)
			continue;
		async = defGetBoolean(option);
		stmt->options = foreach_delete_current(stmt->options, option);
	}
	return async;
}

double
mer_job_estimated_rows(Oid relid)
{
	double		total = 0;

	mer_rel_stats_forget();
	foreach_oid(child, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		Relation	rel = table_open(child, NoLock);
		double		rows;
		double		bytes;

		if (mer_is_table(rel) && mer_rel_stats(rel, &rows, &bytes))
			total += rows;
		table_close(rel, NoLock);
	}
	return total;
}

void
mer_job_forget_index(void)
{
	memset(&order, 0, sizeof(order));
	mer_job_building = false;
}

void
mer_job_before_index(IndexStmt *stmt, bool top_level, const char *text, int location, int len)
{
	Oid			relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	bool		async = takes_async(stmt, text, location, len);

	mer_job_forget_index();
	if (!OidIsValid(relid) || get_rel_persistence(relid) != RELPERSISTENCE_PERMANENT)
	{
		if (async && OidIsValid(relid))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("ASYNC is not supported for indexes of temporary tables")));
		return;
	}
	if (!async)
	{
		if (!top_level || IsInTransactionBlock(true))
			return;
		if (mer_job_estimated_rows(relid) <= job_rows)
			return;
	}
	order.active = true;
	order.async = async;
}

bool
mer_job_takes_build(Relation heap, Relation index)
{
	MemoryContext old;

	if (!order.active)
		return false;
	if (mer_txn_created(mer_rel(heap)->sid))
	{
		order.built = RelationGetRelid(index);
		return false;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	order.targets = lappend_oid(order.targets, RelationGetRelid(index));
	MemoryContextSwitchTo(old);
	return true;
}

/* ---------- the job's row ---------- */

/* The index that the statement named: the topmost one. */
static Oid
top_index(Oid target)
{
	List	   *ancestors = get_partition_ancestors(target);

	return ancestors ? llast_oid(ancestors) : target;
}

static void
describe(MerJob *job, Oid index)
{
	Oid			table = IndexGetRelation(index, false);

	mer_job_set_int(job, JOB_CLASS_ID, RelationRelationId);
	mer_job_set_int(job, JOB_OBJECT_ID, index);
	mer_job_set(job, JOB_OBJECT_NAME,
				quote_qualified_identifier(get_namespace_name(get_rel_namespace(index)),
										   get_rel_name(index)));
	mer_job_set_int(job, JOB_TABLE_ID, table);
	mer_job_set_int(job, JOB_ROWS_ESTIMATED, (int64) mer_job_estimated_rows(table));
}

static void
mark_building(List *targets)
{
	foreach_oid(target, targets)
	{
		foreach_oid(ancestor, get_partition_ancestors(target))
			mer_job_mark_valid(ancestor, false);
		mer_job_mark_valid(target, false);
	}
}

/* Wherever its session is. */
static void
wake_runner(void)
{
	NotifyStmt *note = makeNode(NotifyStmt);

	note->conditionname = pstrdup(CHANNEL);
	note->payload = pstrdup("");
	if (!mer_notify(note))
		Async_Notify(CHANNEL, "");
}

static void
order_job(MerJob *job)
{
	StringInfoData list;
	ListCell   *lc;

	CommandCounterIncrement();
	mark_building(order.targets);
	mer_job_init(job, "INDEX_BUILD");
	describe(job, order.targets ? top_index(linitial_oid(order.targets)) : order.built);
	initStringInfo(&list);
	foreach(lc, order.targets)
		appendStringInfo(&list, "%s%u", lc == list_head(order.targets) ? "" : ",", lfirst_oid(lc));
	mer_job_set(job, JOB_TARGETS, list.data);
	if (order.targets == NIL)
	{
		mer_job_set(job, JOB_STATUS, "completed");
		mer_job_set(job, JOB_PHASE, "");
	}
	mer_job_put(job, true);
	wake_runner();
}

/* ---------- the wait ---------- */

static void
show_progress(MerJob *job)
{
	const int	index[] = {PROGRESS_CREATEIDX_PHASE, PROGRESS_CREATEIDX_TUPLES_TOTAL,
	PROGRESS_CREATEIDX_TUPLES_DONE, PROGRESS_CREATEIDX_INDEX_OID};
	int64		values[] = {PROGRESS_CREATEIDX_PHASE_BUILD, mer_job_int(job, JOB_ROWS_ESTIMATED),
	mer_job_int(job, JOB_ROWS_DONE), mer_job_int(job, JOB_OBJECT_ID)};

	pgstat_progress_update_multi_param(lengthof(index), index, values);
}

pg_noreturn static void
raise_end(MerJob *job)
{
	const char *state = job->field[JOB_SQLSTATE].data;

	if (mer_job_is(job, JOB_STATUS, "cancelled"))
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("job \"%s\" was cancelled", job->id),
				 job->field[JOB_DETAILS].len ? errdetail("%s.", job->field[JOB_DETAILS].data) : 0));
	ereport(ERROR,
			(errcode(strlen(state) == 5 ? MAKE_SQLSTATE(state[0], state[1], state[2], state[3], state[4]) :
					 ERRCODE_INTERNAL_ERROR),
			 errmsg_internal("%s", job->field[JOB_DETAILS].data),
			 job->field[JOB_ERROR_DETAIL].len ? errdetail_internal("%s", job->field[JOB_ERROR_DETAIL].data) : 0));
}

/*
 * The job's last step is in the journal; the catalog of this instance follows.
 * Whoever was told that the job has ended shall find it so.
 */
static void
wait_for_catalog(MerJob *job)
{
	bool		completed = mer_job_is(job, JOB_STATUS, "completed");
	List	   *targets = mer_job_targets(job);
	Oid			index = targets ? linitial_oid(targets) : InvalidOid;

	for (int waited_ms = 0; waited_ms < CATALOG_WAIT_MS; waited_ms += CATALOG_POLL_MS)
	{
		bool		there;

		AcceptInvalidationMessages();
		if (mer_job_is(job, JOB_TYPE, MER_REWRITE_TYPE))
		{
			if (!OidIsValid(mer_rewrite_hidden("rows", (Oid) mer_job_int(job, JOB_TABLE_ID))))
				return;
		}
		else
		{
			there = SearchSysCacheExists1(INDEXRELID, ObjectIdGetDatum(index));
			if (completed ? there && get_index_isvalid(index) : !there)
				return;
			/* Dropped since, or not known here yet. */
			if (completed && !there && waited_ms >= CATALOG_MISSING_MS)
				return;
		}
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, CATALOG_POLL_MS,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* ---------- the cancel ---------- */

/* What the user wants of a statement that waits, whose job may end any moment. */
typedef struct Cancel
{
	bool		wanted;
	bool		by_time;		/* statement_timeout */
	int			attempts;
} Cancel;

/*
 * Takes a cancel that has come.  The indicator goes too: it would make an error
 * of a later cancel that finds the session idle, for its next statement to read.
 */
static bool
take_cancel(Cancel *cancel)
{
	if (QueryCancelPending)
	{
		QueryCancelPending = false;
		cancel->by_time = get_timeout_indicator(STATEMENT_TIMEOUT, true);
		cancel->wanted = true;
	}
	return cancel->wanted;
}

/* The statement has happened: it ends so, and whatever would end it otherwise is void. */
static void
end_of_cancels(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	QueryCancelPending = false;
	RESUME_CANCEL_INTERRUPTS();
}

pg_noreturn static void
just_ended(const char *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("job \"%s\" has just ended", id)));
}

/* In a transaction of its own.  NULL: the job is cancelled. */
static ErrorData *
try_cancel(const char *id)
{
	MemoryContext cxt = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	/* A second cancel ends waiting for locks. */
	RESUME_CANCEL_INTERRUPTS();
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		if (!mer_job_cancel(id))
			just_ended(id);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	StartTransactionCommand();
	MemoryContextSwitchTo(cxt);
	HOLD_CANCEL_INTERRUPTS();
	return error;
}

/*
 * The user gave up on the statement: nothing is left of it.  Comes back if the
 * job could not be cancelled just now: it may have ended, and how it did is then
 * the answer.
 */
static void
cancel_and_leave(const char *id, Cancel *cancel)
{
	ErrorData  *error = try_cancel(id);

	if (error == NULL && cancel->by_time)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement due to statement timeout")));
	if (error == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement due to user request")));
	if (error->sqlerrcode != ERRCODE_QUERY_CANCELED && ++cancel->attempts < CANCEL_ATTEMPTS)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("the statement ends, but job \"%s\" may go on", id),
			 errdetail("The job could not be cancelled: %s.", error->message),
			 errhint("See sys.jobs; CALL sys.cancel_job ends it.")));
}

void
mer_job_wait(const char *id, bool cancels)
{
	/* Transactions end meanwhile. */
	MemoryContext cxt = AllocSetContextCreate(PortalContext, "meridian job", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	int			pause_ms = WAIT_FIRST_MS;
	Cancel		cancel = {0};

	/* Until it is known how the job ended, or that it was cancelled, nothing else is true. */
	if (cancels)
		HOLD_CANCEL_INTERRUPTS();
	for (;;)
	{
		MerJob		job;
		bool		found;

		/* A gateway that is away comes back, and the job with it. */
		if (mer_job_peek(id, &job, &found) == MER_OK)
		{
			if (!found)
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_OBJECT),
						 errmsg("job \"%s\" does not exist", id)));
			if (cancels && mer_job_is(&job, JOB_TYPE, "INDEX_BUILD"))
				show_progress(&job);
			if (mer_job_finished(&job))
				wait_for_catalog(&job);
			if (mer_job_is(&job, JOB_STATUS, "completed"))
				break;
			if (mer_job_finished(&job))
				raise_end(&job);
		}
		if (cancels && take_cancel(&cancel))
			cancel_and_leave(id, &cancel);
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, pause_ms,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		pause_ms = Min(WAIT_LAST_MS, pause_ms * 2);
		MemoryContextReset(cxt);
	}
	if (cancels)
		end_of_cancels();
	MemoryContextSwitchTo(cancels ? CurTransactionContext : old);
	MemoryContextDelete(cxt);
}

/*
 * In this transaction; false: the job has ended.  No step is on its way once
 * the tables are locked.
 */
bool
mer_job_cancel(const char *id)
{
	MerJob		job;
	bool		dropped;

	mer_job_peek_existing(id, &job);
	if (mer_job_finished(&job))
		return false;
	dropped = mer_job_drop_indexes(&job);
	if (!mer_job_get(id, &job) || mer_job_finished(&job))
		just_ended(id);
	/* Ordered elsewhere a moment ago: by now the catalog knows the index. */
	AcceptInvalidationMessages();
	if (!dropped)
		(void) mer_job_drop_indexes(&job);
	mer_job_set(&job, JOB_STATUS, "cancelled");
	mer_job_set(&job, JOB_PHASE, "");
	mer_job_set(&job, JOB_POSITION, "");
	mer_job_set(&job, JOB_MARK, "");
	mer_job_put(&job, false);
	return true;
}

/* ---------- after the statement ---------- */

/* A row where the client takes one (simple protocol), and a notice everywhere. */
static void
tell_id(const char *id, DestReceiver *dest)
{
	if (dest && dest->mydest == DestRemote)
	{
		TupleDesc	desc = CreateTemplateTupleDesc(1);
		TupOutputState *out;

		TupleDescInitEntry(desc, 1, "job_id", TEXTOID, -1, 0);
		out = begin_tup_output_tupdesc(dest, desc, &TTSOpsVirtual);
		do_text_output_oneline(out, id);
		end_tup_output(out);
	}
	ereport(NOTICE, (errmsg("job_id %s", id)));
}

void
mer_job_after_index(PlannedStmt *pstmt, const char *text, DestReceiver *dest)
{
	bool		async = order.async;
	Oid			table;
	MerJob		job;

	if (!order.active || (order.targets == NIL && !(async && OidIsValid(order.built))))
	{
		mer_job_forget_index();
		return;
	}
	order_job(&job);
	table = (Oid) mer_job_int(&job, JOB_TABLE_ID);
	mer_job_forget_index();
	if (async)
	{
		tell_id(job.id, dest);
		return;
	}
	mer_catalog_note_statement(pstmt, text);
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	StartTransactionCommand();
	pgstat_progress_start_command(PROGRESS_COMMAND_CREATE_INDEX, table);
	mer_job_wait(job.id, true);
	pgstat_progress_end_command();
}

bool
mer_job_rewrites(PlannedStmt *pstmt, const char *text, bool top_level)
{
	MerJob		job;

	if (!mer_rewrite_before((AlterTableStmt *) pstmt->utilityStmt, top_level, &job))
		return false;
	wake_runner();
	mer_catalog_note_statement(pstmt, text);
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	CommitTransactionCommand();
	StartTransactionCommand();
	mer_job_wait(job.id, true);
	return true;
}

static void
at_xact(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
	{
		mer_job_forget_index();
		mer_validate_forget();
	}
}

void
mer_jobs_init(void)
{
	DefineCustomIntVariable("meridian.index_job_rows",
							"CREATE INDEX on a table of more rows runs as a background job.",
							"Estimated; up to so many rows, one commit builds the index.",
							&job_rows, 1000, 0, INT_MAX, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("meridian.rewrite_online_rows",
							"ALTER TABLE that rewrites a table of more rows runs as a background job.",
							"Estimated; up to so many rows, one commit rewrites it and keeps writers out.",
							&mer_rewrite_online_rows, 10000, 0, INT_MAX, PGC_USERSET, 0, NULL, NULL,
							NULL);
	RegisterXactCallback(at_xact, NULL);
	mer_validate_init();
}
