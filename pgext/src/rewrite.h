/*
 * rewrite.h
 *	  Rewrites of big tables beside their writers (docs/rfcs, "Rewrites").
 *
 * While one runs, two hidden tables in schema pg_meridian belong to the table:
 * rows_<oid>, which has the new shape and is filled by the job alone, and
 * marks_<oid>, in which every writer of the table leaves the keys it has written.
 */
#ifndef MERIDIAN_REWRITE_H
#define MERIDIAN_REWRITE_H

#include "jobs.h"
#include "nodes/parsenodes.h"

#define MER_REWRITE_TYPE "REWRITE"

/* Where the value of a column of a new row comes from, if not from the old row as it is. */
typedef enum MerRewriteKind
{
	MER_FROM_OLD,				/* an expression over the old row */
	MER_FROM_NEW,				/* a generated column: over the new row */
	MER_ONCE,					/* evaluated when the row is met first, then kept */
	MER_NUMBER					/* as MER_ONCE, of a sequence that the statement makes */
} MerRewriteKind;

typedef struct MerRewriteColumn
{
	AttrNumber	attnum;
	MerRewriteKind kind;
	Node	   *expr;			/* not of MER_NUMBER */
	int64		next;			/* of MER_NUMBER */
	int64		increment;
	int64		min;
	int64		max;
} MerRewriteColumn;

typedef struct MerRewriteCheck
{
	char	   *name;
	Node	   *expr;			/* over the new row */
} MerRewriteCheck;

/* What the job does; written into its row by the transaction that orders it. */
typedef struct MerRewritePlan
{
	AlterTableStmt *stmt;
	List	   *settings;		/* name, value, ... that expressions may depend on */
	List	   *columns;		/* MerRewriteColumn */
	List	   *checks;			/* MerRewriteCheck */
	List	   *not_null;		/* numbers of columns, integers */
	List	   *types;			/* of the old columns, OIDs; 0: dropped */
	List	   *index_names;	/* of the table's indexes, for errors; parallel to indexes */
	int64		sid;			/* of the table as it was */
	bool		organised;		/* new rows are keyed by the primary key */
	MerBytes	end;			/* last row key at the first step; empty: not known */
	/* not written: */
	TupleDesc	desc;			/* of new rows */
	List	   *indexes;		/* IndexStmt: those with entries of their own */
} MerRewritePlan;

/* ---------- rewrite_plan.c ---------- */

/* Does it only change types and add columns? */
extern bool mer_rewrite_is_candidate(const AlterTableStmt *stmt);

/* NULL: not a statement for a job.  Raises what is wrong with the statement. */
extern MerRewritePlan *mer_rewrite_plan(Oid relid, AlterTableStmt *stmt);

/* A table without relatives, of which a foreign key concerns no column that changes. */
extern bool mer_rewrite_fits(Oid relid, const AlterTableStmt *stmt);

/* ---------- rewrite_text.c: as text, in the job's row ---------- */

extern char *mer_rewrite_plan_out(const MerRewritePlan *plan);
extern MerRewritePlan *mer_rewrite_plan_in(const char *text);

/* ---------- rewrite_alter.c: ALTER TABLE without a look at rows ---------- */

/* Tries the statement; inspect sees the catalog as it would be.  False: it rewrites nothing. */
extern bool mer_rewrite_try(Oid relid, AlterTableStmt *stmt,
							void (*inspect) (Oid relid, void *arg), void *arg);

/* Runs it; rows and entries are those of the hidden table. */
extern void mer_rewrite_switch(Oid relid, Oid rows, bool organised, AlterTableStmt *stmt);

/* ---------- rewrite_rows.c ---------- */

typedef struct MerRewriteRows MerRewriteRows;

extern MerRewriteRows *mer_rewrite_rows_begin(MerRewritePlan *plan, Relation table, Relation rows,
											  Oid owner);
extern void mer_rewrite_rows_end(MerRewriteRows *r);

/* Copy rows behind a key; true: there are no more. */
extern bool mer_rewrite_copy(MerRewriteRows *r, MerBytes *position, int budget, int64 *read);

/* Make the new rows of these keys, ascending, what the old rows are as of tau_start. */
extern void mer_rewrite_refresh(MerRewriteRows *r, MerBytes *keys, int n);

/* ---------- rewrite_job.c ---------- */

extern int	mer_rewrite_online_rows;	/* GUC meridian.rewrite_online_rows */

extern Oid	mer_rewrite_hidden(const char *kind, Oid relid);	/* InvalidOid: none */
extern bool mer_rewrite_before(AlterTableStmt *stmt, bool top_level, MerJob *job);
extern void mer_rewrite_refuse_ddl(RangeVar *name);
extern const char *mer_rewrite_step(MerJob *seen, int budget, bool gate, int64 *rows);
extern bool mer_rewrite_drop(MerJob *job);

#endif							/* MERIDIAN_REWRITE_H */
