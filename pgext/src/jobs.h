/*
 * jobs.h
 *	  Background jobs: index builds that commit in small steps.
 *
 * A job is one row of system relation 3, key = its id, columns of class bytes.
 * It is written by the transaction that orders it, then by each of its steps in
 * the same commit as what the step did, so it goes on after a crash of
 * anything exactly where it was.
 */
#ifndef MERIDIAN_JOBS_H
#define MERIDIAN_JOBS_H

#include "store.h"

#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "tcop/dest.h"

#define MER_JOB_SID 3
#define MER_JOB_ID_CHARS 26

/* Columns of a job; numbers in decimal, times in microseconds since 2000. */
typedef enum MerJobField
{
	JOB_STATUS = 0,				/* submitted, processing, completed, failed, cancelled */
	JOB_TYPE,					/* INDEX_BUILD, REWRITE */
	JOB_DETAILS,				/* why it failed */
	JOB_SQLSTATE,
	JOB_ERROR_DETAIL,
	JOB_CLASS_ID,
	JOB_OBJECT_ID,
	JOB_OBJECT_NAME,			/* with its schema */
	JOB_TABLE_ID,
	JOB_OWNER,					/* role that ordered it */
	JOB_START,
	JOB_UPDATE,
	JOB_ROWS_DONE,
	JOB_ROWS_ESTIMATED,
	JOB_TARGETS,				/* OIDs of the indexes to be filled, comma-separated */
	JOB_AT,						/* which of them */
	JOB_POSITION,				/* last row key done there */
	JOB_PHASE,					/* build, finish, fail; of a rewrite: copy, catchup, switch, fail */
	JOB_PLAN,					/* of a rewrite: what to do (rewrite_text.c) */
	JOB_MARK,					/* last mark of writers worked off in this round; of an index
								 * build: last row key there was at its first step */
	JOB_FIELDS
} MerJobField;

typedef struct MerJob
{
	char		id[MER_JOB_ID_CHARS + 1];
	MerBytes	field[JOB_FIELDS];	/* zero-terminated; of the current memory context */
} MerJob;

/* ---------- jobs.c: rows ---------- */

extern void mer_job_init(MerJob *job, const char *type);	/* with a new id */
extern void mer_job_set(MerJob *job, MerJobField field, const char *text);
extern void mer_job_set_bytes(MerJob *job, MerJobField field, const char *data, uint32 len);
extern void mer_job_set_int(MerJob *job, MerJobField field, int64 value);
extern int64 mer_job_int(const MerJob *job, MerJobField field);
extern List *mer_job_targets(const MerJob *job);
extern bool mer_job_is(const MerJob *job, MerJobField field, const char *text);
extern bool mer_job_finished(const MerJob *job);

/* Part of this transaction's write set; conflicts with every other step of the job. */
extern void mer_job_put(MerJob *job, bool is_new);
extern void mer_job_delete(const char *id);

/* As of tau_start of this transaction. */
extern bool mer_job_get(const char *id, MerJob *job);

/*
 * As of now, whatever this transaction reads: for those who wait.  Does not
 * throw and serves no interrupts; MER_LOST while there is no gateway.
 */
extern MerStatus mer_job_peek(const char *id, MerJob *job, bool *found);

/* The same; ERROR if there is no such job, or no gateway. */
extern void mer_job_peek_existing(const char *id, MerJob *job);

/* All jobs as of now: a list of MerJob. */
extern List *mer_job_list(void);

/* ERROR unless the text has the form of an id. */
extern void mer_job_check_id(const char *id);

/* ---------- jobs_build.c: one step ---------- */

/* A step's own work begins; its milliseconds since, without waits for storage. */
extern void mer_job_work_begins(void);
extern double mer_job_work_ms(void);

/* The last row key as of tau_start; empty: there is no row. */
extern MerBytes mer_job_last_key(Relation rel);

extern const char *mer_job_build_step(const char *id, int budget, bool gate, int64 *rows);
extern bool mer_job_drop_indexes(MerJob *job);
extern void mer_job_mark_valid(Oid index, bool valid);

/* ---------- jobs_ddl.c: CREATE INDEX ---------- */

/*
 * Before and after an IndexStmt.  The second may commit and go on in another
 * transaction, waiting for the job.
 */
extern void mer_job_before_index(IndexStmt *stmt, bool top_level, const char *text,
								 int location, int len);
extern void mer_job_after_index(PlannedStmt *pstmt, const char *text, DestReceiver *dest);
extern void mer_job_forget_index(void);

/* Called by the index's build: true if a job will make the entries. */
extern bool mer_job_takes_build(Relation heap, Relation index);

/* Rows of a table and of all that inherits from it; locks them AccessShare. */
extern double mer_job_estimated_rows(Oid relid);

/* The index being created leaves the rows that are there to a job. */
extern bool mer_job_building;

/* ALTER TABLE that rewrites a big table; true: it is done. */
extern bool mer_job_rewrites(PlannedStmt *pstmt, const char *text, bool top_level);

/* Wait until a job has ended; raises its error if it did not complete. */
extern void mer_job_wait(const char *id, bool cancels);
extern bool mer_job_cancel(const char *id);

extern void mer_jobs_init(void);

/* ---------- validate.c ---------- */

/* Before and after ALTER TABLE; the second may commit and go on in another transaction. */
extern void mer_validate_before(AlterTableStmt *stmt, bool top_level);
extern void mer_validate_after(PlannedStmt *pstmt, const char *text);
extern void mer_validate_forget(void);
extern void mer_validate_init(void);

#endif							/* MERIDIAN_JOBS_H */
