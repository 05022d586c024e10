/*
 * rewrite_job.c
 *	  The job that rewrites a big table: ordered, stepped, ended.
 *
 * copy: rows in key order, up to the last one there was at its first step; every
 * few steps the marks that writers left are worked off instead, so that they do
 * not pile up.  catchup: the marks, round after round; each time that rounds do not
 * get shorter, writers are held for longer.  switch: once a round fits a step,
 * writers are held, the last marks are worked off and ALTER TABLE takes the new
 * rows over, in one commit.  fail: everything hidden goes.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/heap.h"
#include "catalog/index.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "rewrite.h"
#include "seqstate.h"
#include "store.h"
#include "utility.h"

#define STEP_ROWS_MAX 2000
#define STEP_BYTES_EXPECTED (4 * 1024 * 1024)
#define SWEEP_EVERY 4			/* steps of a copy */
#define LONGEST_HOLD 6			/* steps of STEP_ROWS_MAX << 6 */
#define GIVE_UP_AT 12			/* rounds that did not get shorter */
#define HOLD_STEPS 250			/* a step that holds writers is as long as so many usual ones */

int			mer_rewrite_online_rows = 10000;

/* ---------- the order ---------- */

static Oid
make_hidden(const char *kind, Oid relid, TupleDesc desc)
{
	Oid			schema = get_namespace_oid("pg_meridian", false);
	char	   *name = psprintf("%s_%u", kind, relid);
	ObjectAddress made = {RelationRelationId, InvalidOid, 0};
	ObjectAddress table = {RelationRelationId, relid, 0};

	made.objectId = heap_create_with_catalog(name, schema, InvalidOid, InvalidOid, InvalidOid,
											 InvalidOid, BOOTSTRAP_SUPERUSERID,
											 get_table_am_oid("meridian", false), desc, NIL,
											 RELKIND_RELATION, RELPERSISTENCE_PERMANENT, false, false,
											 ONCOMMIT_NOOP, (Datum) 0, false, false, true, InvalidOid,
											 NULL);
	CommandCounterIncrement();
	/* Goes with the table. */
	recordDependencyOn(&made, &table, DEPENDENCY_AUTO);
	return made.objectId;
}

static TupleDesc
desc_of_marks(void)
{
	TupleDesc	desc = CreateTemplateTupleDesc(1);

	TupleDescInitEntry(desc, 1, "key", BYTEAOID, -1, 0);
	return desc;
}

static void
make_hidden_tables(Oid relid, MerRewritePlan *plan, MerJob *job)
{
	Oid			rows = make_hidden("rows", relid, plan->desc);
	Oid			marks = make_hidden("marks", relid, desc_of_marks());
	int			n = 0;

	foreach_node(IndexStmt, stmt, plan->indexes)
	{
		stmt->idxname = psprintf("entries_%u_%d", relid, n++);
		(void) DefineIndex(rows, stmt, InvalidOid, InvalidOid, InvalidOid, -1, false, false, false,
						   false, true);
		CommandCounterIncrement();
	}
	mer_job_set(job, JOB_TARGETS, psprintf("%u,%u", rows, marks));
}

static bool
order(Oid relid, AlterTableStmt *stmt, MerJob *job)
{
	MerRewritePlan *plan;

	/* As the statement itself would; whoever has begun is waited for. */
	LockRelationOid(relid, AccessExclusiveLock);
	plan = mer_rewrite_plan(relid, stmt);
	if (plan == NULL)
		return false;
	mer_job_init(job, MER_REWRITE_TYPE);
	mer_job_set_int(job, JOB_CLASS_ID, RelationRelationId);
	mer_job_set_int(job, JOB_OBJECT_ID, relid);
	mer_job_set_int(job, JOB_TABLE_ID, relid);
	mer_job_set(job, JOB_OBJECT_NAME,
				quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
										   get_rel_name(relid)));
	mer_job_set_int(job, JOB_ROWS_ESTIMATED, (int64) mer_job_estimated_rows(relid));
	mer_job_set(job, JOB_PHASE, "copy");
	make_hidden_tables(relid, plan, job);
	mer_job_set(job, JOB_PLAN, mer_rewrite_plan_out(plan));
	mer_relmap_touch(relid);
	mer_job_put(job, true);
	return true;
}

/* ALTER TABLE of a big table, alone in its transaction.  False: not a statement for a job. */
bool
mer_rewrite_before(AlterTableStmt *stmt, bool top_level, MerJob *job)
{
	Oid			relid;

	if (!mer_rewrite_is_candidate(stmt) || !top_level || XactReadOnly || IsInTransactionBlock(true))
		return false;
	relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	if (!OidIsValid(relid) || !object_ownercheck(RelationRelationId, relid, GetUserId()) ||
		get_rel_relkind(relid) != RELKIND_RELATION || mer_relmap_sid(relid, true) == 0 ||
		!OidIsValid(get_namespace_oid("pg_meridian", true)) ||
		mer_job_estimated_rows(relid) <= mer_rewrite_online_rows)
		return false;
	return order(relid, stmt, job);
}

/* The catalog of this instance may lag behind the end of a job. */
static bool
is_rewritten(Oid relid)
{
	if (!OidIsValid(mer_rewrite_hidden("marks", relid)))
		return false;
	foreach_ptr(MerJob, job, mer_job_list())
	{
		if (mer_job_is(job, JOB_TYPE, MER_REWRITE_TYPE) && !mer_job_finished(job) &&
			(Oid) mer_job_int(job, JOB_TABLE_ID) == relid)
			return true;
	}
	return false;
}

/* What changes the table would be undone by the switch, or make it fail. */
void
mer_rewrite_refuse_ddl(RangeVar *name)
{
	Oid			relid;

	if (name == NULL || mer_rewrite_running())
		return;
	relid = RangeVarGetRelid(name, NoLock, true);
	if (OidIsValid(relid) && get_rel_relkind(relid) == RELKIND_INDEX)
		relid = IndexGetRelation(relid, true);
	if (!OidIsValid(relid) || !is_rewritten(relid))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("table \"%s\" is being rewritten by a background job", get_rel_name(relid)),
			 errhint("See sys.jobs: wait for the job, or end it with CALL sys.cancel_job.")));
}

/* ---------- the end ---------- */

static void
end_job(MerJob *job, const char *status, const char *details)
{
	mer_job_set(job, JOB_STATUS, status);
	mer_job_set(job, JOB_PHASE, "");
	mer_job_set(job, JOB_POSITION, "");
	mer_job_set(job, JOB_MARK, "");
	mer_job_set(job, JOB_PLAN, "");
	if (details)
		mer_job_set(job, JOB_DETAILS, details);
}

static void
fail(MerJob *job, const char *state, const char *details)
{
	mer_job_set(job, JOB_PHASE, "fail");
	mer_job_set(job, JOB_SQLSTATE, state);
	mer_job_set(job, JOB_DETAILS, details);
}

static void
drop_hidden(Oid relid)
{
	const char *kinds[] = {"rows", "marks"};

	for (int i = 0; i < (int) lengthof(kinds); i++)
	{
		ObjectAddress hidden = {RelationRelationId, mer_rewrite_hidden(kinds[i], relid), 0};

		if (!OidIsValid(hidden.objectId))
			continue;
		LockRelationOid(hidden.objectId, AccessExclusiveLock);
		performDeletion(&hidden, DROP_RESTRICT, PERFORM_DELETION_INTERNAL);
	}
	CommandCounterIncrement();
}

/* False: this instance knows of nothing to drop. */
bool
mer_rewrite_drop(MerJob *job)
{
	Oid			relid = (Oid) mer_job_int(job, JOB_TABLE_ID);

	LockRelationOid(relid, ShareRowExclusiveLock);
	if (!OidIsValid(mer_rewrite_hidden("rows", relid)))
		return false;
	drop_hidden(relid);
	mer_relmap_touch(relid);
	return true;
}

/* Numbers that rows have got count as drawn. */
static void
advance_sequences(Oid relid, MerRewritePlan *plan)
{
	foreach_ptr(MerRewriteColumn, column, plan->columns)
	{
		FormData_pg_sequence params;

		if (column->kind != MER_NUMBER)
			continue;
		foreach_oid(sequence, getOwnedSequences(relid))
		{
			Oid			table;
			int32		attnum;

			if ((!sequenceIsOwned(sequence, DEPENDENCY_AUTO, &table, &attnum) &&
				 !sequenceIsOwned(sequence, DEPENDENCY_INTERNAL, &table, &attnum)) ||
				attnum != column->attnum)
				continue;
			mer_seq_parameters(sequence, &params);
			if (column->next != params.seqstart)
				mer_seq_set(mer_relmap_sid(sequence, false), column->next - column->increment, true);
		}
	}
}

static void
alter_as_ordered(MerJob *job, MerRewritePlan *plan, Oid relid, Oid rows)
{
	Oid			user;
	int			context;
	int			nest = NewGUCNestLevel();

	GetUserIdAndSecContext(&user, &context);
	for (int i = 0; i + 1 < list_length(plan->settings); i += 2)
		(void) set_config_option(strVal(list_nth(plan->settings, i)),
								 strVal(list_nth(plan->settings, i + 1)),
								 PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	SetUserIdAndSecContext((Oid) mer_job_int(job, JOB_OWNER),
						   context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	mer_rewrite_switch(relid, rows, plan->organised, plan->stmt);
	SetUserIdAndSecContext(user, context);
	AtEOXact_GUC(false, nest);
}

/* ---------- one step ---------- */

typedef struct Step
{
	MerJob	   *job;
	MerRewritePlan *plan;
	Relation	table;
	Relation	rows;
	Relation	marks;
	int			budget;
	int64		read;
	bool		plan_changed;
} Step;

/* Will the copy come to this row? */
static bool
is_to_be_copied(Step *s, MerBytes key, const MerBytes *through)
{
	return through != NULL && mer_bytes_cmp(&key, through) > 0 &&
		(s->plan->end.len == 0 || mer_bytes_cmp(&key, &s->plan->end) <= 0);
}

/* Keys of the rows that some marks name, ascending; the marks go. */
static int
take_marks(Step *s, int limit, MerBytes *keys, bool *ended, const MerBytes *through)
{
	MerBytes	position = s->job->field[JOB_MARK];
	MerScanSpec spec = {.table = s->marks,.direction = ForwardScanDirection,.no_tids = true,
	.limit = limit};
	TupleTableSlot *slot = table_slot_create(s->marks, NULL);
	MerRel	   *mr = mer_rel(s->marks);
	MerBuf	   *buf = mer_buf_get(mr->sid, mr->relid, true);
	CommandId	cid = GetCurrentCommandId(true);
	MerScan    *scan;
	MerBytes	mark = {"", 0};
	int			n = 0;

	if (position.len > 0)
	{
		spec.lo = position.data;
		spec.lo_len = position.len + 1;
	}
	scan = mer_scan_begin(&spec, SnapshotAny);
	*ended = true;
	while (mer_scan_next(scan, ForwardScanDirection, slot))
	{
		MerBytes	key;
		char	   *copy;

		if (s->read == limit)
		{
			*ended = false;
			break;
		}
		mer_scan_rowkey(scan, &key);
		copy = palloc(key.len + 1);
		memcpy(copy, key.data, key.len);
		copy[key.len] = '\0';
		mark = (MerBytes) {copy, key.len};
		mer_buf_push(buf, mark.data, mark.len, NULL, 0, NULL, cid, true, true);
		s->read++;
		key = (MerBytes) {mark.data, mark.len - MER_TXID_BYTES};
		if (!is_to_be_copied(s, key, through))
			keys[n++] = key;
	}
	mer_scan_end(scan);
	ExecDropSingleTupleTableSlot(slot);
	mer_job_set_bytes(s->job, JOB_MARK, *ended ? "" : mark.data, *ended ? 0 : mark.len);
	return n;
}

static int
without_repeats(MerBytes *keys, int n)
{
	int			unique = 0;

	qsort(keys, n, sizeof(MerBytes), mer_bytes_cmp);
	for (int i = 0; i < n; i++)
		if (unique == 0 || mer_bytes_cmp(&keys[unique - 1], &keys[i]) != 0)
			keys[unique++] = keys[i];
	return unique;
}

/* True: that was the last mark of a round. */
static bool
work_off_marks(Step *s, const MerBytes *through)
{
	MerBytes   *keys = palloc((s->budget + 1) * sizeof(MerBytes));
	bool		ended;
	int			n = take_marks(s, s->budget, keys, &ended, through);
	MerRewriteRows *r;

	n = without_repeats(keys, n);
	if (n == 0)
		return ended;
	r = mer_rewrite_rows_begin(s->plan, s->table, s->rows, (Oid) mer_job_int(s->job, JOB_OWNER));
	mer_rewrite_refresh(r, keys, n);
	mer_rewrite_rows_end(r);
	return ended;
}

static void
next_phase(MerJob *job, const char *phase)
{
	mer_job_set(job, JOB_PHASE, phase);
	mer_job_set(job, JOB_POSITION, "");
	mer_job_set(job, JOB_MARK, "");
	mer_job_set_int(job, JOB_AT, 0);
}

static void
copy_step(Step *s)
{
	MerBytes	position = s->job->field[JOB_POSITION];
	MerRewriteRows *r;
	bool		ended;

	if (mer_job_int(s->job, JOB_AT) % SWEEP_EVERY == 0 && position.len > 0)
	{
		(void) work_off_marks(s, &position);
		return;
	}
	/* Who adds rows behind it later leaves marks: the copy ends although they never do. */
	if (position.len == 0)
	{
		s->plan->end = mer_job_last_key(s->table);
		s->plan_changed = true;
	}
	r = mer_rewrite_rows_begin(s->plan, s->table, s->rows, (Oid) mer_job_int(s->job, JOB_OWNER));
	ended = mer_rewrite_copy(r, &position, s->budget, &s->read);
	mer_rewrite_rows_end(r);
	mer_job_set_int(s->job, JOB_ROWS_DONE, mer_job_int(s->job, JOB_ROWS_DONE) + s->read);
	if (ended)
		next_phase(s->job, "catchup");
	else
		mer_job_set_bytes(s->job, JOB_POSITION, position.data, position.len);
}

/* From catching up on, the position says how long rounds are. */
typedef struct Rounds
{
	long		before;			/* marks in the last round; at first, rows of the table */
	long		now;			/* in this one so far */
	int			longer;			/* how often one did not get shorter: writers are faster than the job */
} Rounds;

static Rounds
get_rounds(const MerJob *job)
{
	Rounds		rounds = {0};

	(void) sscanf(job->field[JOB_POSITION].data, "%ld %ld %d", &rounds.before, &rounds.now,
				  &rounds.longer);
	if (rounds.before == 0)
		rounds.before = Max(mer_job_int(job, JOB_ROWS_DONE), STEP_ROWS_MAX);
	return rounds;
}

/*
 * Each time costs at most as many marks as the last round had, and there are few
 * such times; all other rounds are shorter than the one before.  So it ends.
 */
static void
did_not_get_shorter(MerJob *job, Rounds *rounds)
{
	rounds->now = 0;
	if (++rounds->longer < GIVE_UP_AT)
		return;
	fail(job, "55P03", psprintf("table %s is changed faster than it can be rewritten",
								job->field[JOB_OBJECT_NAME].data));
	mer_job_set(job, JOB_ERROR_DETAIL, "Let the sessions pause that change thousands of rows at once, "
				"then run the statement again.");
}

static void
set_rounds(MerJob *job, const Rounds *rounds)
{
	mer_job_set(job, JOB_POSITION,
				psprintf("%ld %ld %d", rounds->before, rounds->now, rounds->longer));
}

static void
catchup_step(Step *s)
{
	Rounds		rounds = get_rounds(s->job);
	bool		whole = s->job->field[JOB_MARK].len == 0;
	bool		ended = work_off_marks(s, NULL);

	rounds.now += s->read;
	if (ended && whole)
		next_phase(s->job, "switch");
	else if (rounds.now > rounds.before / 4 * 3)
		did_not_get_shorter(s->job, &rounds);
	else if (ended)
	{
		rounds.before = Max(rounds.now, 4);
		rounds.now = 0;
	}
	set_rounds(s->job, &rounds);
}

static void
close_all(Step *s)
{
	Relation   *rels[] = {&s->table, &s->rows, &s->marks};

	for (int i = 0; i < (int) lengthof(rels); i++)
	{
		if (*rels[i])
			table_close(*rels[i], NoLock);
		*rels[i] = NULL;
	}
}

/*
 * No more rows than fit memory well, going by their size so far.  hold: writers
 * are held during the step; it is longer, for each time that they were faster.
 */
static int
fitting(Relation table, int budget, int hold)
{
	double		rows = 0;
	double		bytes = 0;
	int			most = STEP_ROWS_MAX;
	double		most_bytes = STEP_BYTES_EXPECTED;

	if (hold > 0)
	{
		budget = Min(budget, STEP_ROWS_MAX) * HOLD_STEPS;
		most = STEP_ROWS_MAX << Min(hold, LONGEST_HOLD);
		most = (int) Min(most, mer_limit("txn_rows") / 8);
		most_bytes = Min(most_bytes * (1 << Min(hold, LONGEST_HOLD)),
						 (double) mer_limit("txn_size_bytes") / 8);
	}
	budget = Max(1, Min(budget, most));
	if (!mer_rel_stats(table, &rows, &bytes) || rows < 1 || bytes < rows)
		return budget;
	return Max(1, Min(budget, (int) Min(most_bytes / (bytes / rows), most)));
}

/* Writers are held: what is marked now is all that there will be. */
static void
switch_step(Step *s)
{
	Oid			relid = RelationGetRelid(s->table);
	Oid			rows = RelationGetRelid(s->rows);
	Rounds		rounds = get_rounds(s->job);

	if (!mer_rewrite_fits(relid, s->plan->stmt))
	{
		fail(s->job, "55000", "the table was changed while it was rewritten");
		return;
	}
	mer_job_set(s->job, JOB_MARK, "");
	if (!work_off_marks(s, NULL))
	{
		next_phase(s->job, "catchup");
		did_not_get_shorter(s->job, &rounds);
		set_rounds(s->job, &rounds);
		return;
	}
	/* Before the table has another storage id. */
	mer_txn_lock_relation(s->table);
	close_all(s);
	alter_as_ordered(s->job, s->plan, relid, rows);
	advance_sequences(relid, s->plan);
	drop_hidden(relid);
	end_job(s->job, "completed", NULL);
}

/* The columns that the plan was made for, and the rows. */
static bool
is_as_planned(Step *s)
{
	TupleDesc	desc = RelationGetDescr(s->table);

	if (mer_rel(s->table)->sid != s->plan->sid || desc->natts != list_length(s->plan->types))
		return false;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if ((att->attisdropped ? InvalidOid : att->atttypid) != list_nth_oid(s->plan->types, i))
			return false;
	}
	return true;
}

static bool
has_numbers(const MerRewritePlan *plan)
{
	foreach_ptr(MerRewriteColumn, column, plan->columns)
	{
		if (column->kind == MER_NUMBER)
			return true;
	}
	return false;
}

static void
make_step(Step *s)
{
	s->plan = mer_rewrite_plan_in(s->job->field[JOB_PLAN].data);
	s->plan->desc = RelationGetDescr(s->rows);
	mer_job_set(s->job, JOB_STATUS, "processing");
	mer_job_set_int(s->job, JOB_AT, mer_job_int(s->job, JOB_AT) + 1);
	if (!is_as_planned(s))
		fail(s->job, "55000", "the table was emptied or changed while it was rewritten");
	else if (mer_job_is(s->job, JOB_PHASE, "copy"))
		copy_step(s);
	else if (mer_job_is(s->job, JOB_PHASE, "catchup"))
		catchup_step(s);
	else
		switch_step(s);
	if (!mer_job_finished(s->job) && (s->plan_changed || has_numbers(s->plan)))
		mer_job_set(s->job, JOB_PLAN, mer_rewrite_plan_out(s->plan));
}

static bool
open_hidden(Step *s)
{
	Oid			relid = RelationGetRelid(s->table);
	Oid			rows = mer_rewrite_hidden("rows", relid);
	Oid			marks = mer_rewrite_hidden("marks", relid);

	s->rows = OidIsValid(rows) ? try_table_open(rows, RowExclusiveLock) : NULL;
	s->marks = OidIsValid(marks) ? try_table_open(marks, RowExclusiveLock) : NULL;
	return s->rows != NULL && s->marks != NULL;
}

/* Locked, and writers held, before tau_start is taken. */
static Relation
open_table(MerJob *seen, bool gate)
{
	bool		switches = mer_job_is(seen, JOB_PHASE, "switch");
	Oid			relid = (Oid) mer_job_int(seen, JOB_TABLE_ID);
	Relation	table;

	if (mer_job_is(seen, JOB_PHASE, "fail"))
		return NULL;
	table = try_table_open(relid, switches ? AccessExclusiveLock : AccessShareLock);
	gate = gate || switches ||
		(mer_job_is(seen, JOB_PHASE, "catchup") && get_rounds(seen).longer > 0);
	if (table && gate)
		mer_gate_for_all(relid);
	return table;
}

/* The job's row as of tau_start still stands; what it needs is there or was dropped. */
static void
step_of(Step *s, int budget)
{
	if (mer_job_is(s->job, JOB_PHASE, "fail"))
	{
		(void) mer_rewrite_drop(s->job);
		end_job(s->job, "failed", NULL);
	}
	else if (s->table == NULL || !open_hidden(s))
		end_job(s->job, "cancelled", "the table was dropped");
	else
	{
		bool		copies = mer_job_is(s->job, JOB_PHASE, "copy");
		int			hold = copies ? 0 : get_rounds(s->job).longer;

		if (hold == 0 && mer_job_is(s->job, JOB_PHASE, "switch"))
			budget = STEP_ROWS_MAX;
		s->budget = fitting(s->table, budget, hold);
		make_step(s);
	}
}

const char *
mer_rewrite_step(MerJob *seen, int budget, bool gate, int64 *rows)
{
	Step		s = {.table = open_table(seen, gate)};
	MerJob		job;
	const char *next = "gone";

	/* Its version was compared: from here on the catalog knows what the job was ordered for. */
	if (mer_job_get(seen->id, &job))
	{
		mer_job_work_begins();
		AcceptInvalidationMessages();
		s.job = &job;
		next = "again";
		/* Nobody else has made this step, and the table is not one just made elsewhere. */
		if (mer_job_is(&job, JOB_PHASE, seen->field[JOB_PHASE].data) &&
			mer_job_is(&job, JOB_AT, seen->field[JOB_AT].data) &&
			(s.table != NULL || mer_job_is(&job, JOB_PHASE, "fail") ||
			 !OidIsValid(get_rel_type_id((Oid) mer_job_int(&job, JOB_TABLE_ID)))))
		{
			step_of(&s, budget);
			*rows = s.read;
			mer_job_put(&job, false);
			next = pstrdup(mer_job_finished(&job) ? job.field[JOB_STATUS].data :
						   job.field[JOB_PHASE].data);
		}
	}
	close_all(&s);
	return next;
}
