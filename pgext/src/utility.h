/*
 * utility.h
 *	  Utility statements: their classes, the guards that refuse or adapt a
 *	  statement before PostgreSQL runs it, and what follows it.
 */
#ifndef MERIDIAN_UTILITY_H
#define MERIDIAN_UTILITY_H

#include "nodes/parsenodes.h"
#include "parser/parse_node.h"
#include "tcop/utility.h"

/*
 * What a statement means to a cluster.  A statement that is in no row of the
 * class table is refused.
 */
typedef enum MerUtilityClass
{
	MER_REFUSED,				/* 0A000 with the row's note as its hint */
	MER_REPLICATED,				/* changes the catalog or rows: part of the commit */
	MER_LOCAL,					/* concerns this session only, or runs other statements */
	MER_NOOP					/* accepted, nothing to do */
} MerUtilityClass;

typedef struct MerGuardContext
{
	bool		top_level;		/* not inside a function or another statement */
	const char *query_string;
} MerGuardContext;

/*
 * A guard refuses with ereport(ERROR) or edits the statement, which is ours to
 * edit.  True: run this one although its class is refused or no-op.
 */
typedef bool (*MerGuard) (Node *stmt, const MerGuardContext *context);

typedef struct MerUtilityRow
{
	NodeTag		tag;
	const char *node_tag;
	const char *statement;
	MerUtilityClass cls;
	MerGuard	guard;
	const char *note;
} MerUtilityRow;

extern const MerUtilityRow *mer_utility_row(NodeTag tag);
extern const char *mer_utility_class_name(MerUtilityClass cls);

/* ---------- guards.c ---------- */

pg_noreturn extern void mer_refuse(const char *what, const char *hint);

/*
 * True for the internal superuser while it maintains the cluster: in
 * single-user mode, or with meridian.maintenance on.
 */
extern bool mer_maintenance(void);

/* Does this cluster have more than one instance? (utility.c) */
extern bool mer_several_instances(void);

/* Will a CREATE of this name make a temporary relation? */
extern bool mer_creates_temp(RangeVar *rv);

extern bool mer_guard_create_table(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_create_table_as(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_index(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_alter_table(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_alter_domain(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_sequence(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_drop(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_refresh(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_explain(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_extension(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_rename(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_owner(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_set(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_transaction(Node *stmt, const MerGuardContext *context);
extern bool mer_guard_vacuum(Node *stmt, const MerGuardContext *context);

/* ---------- ddl.c ---------- */

extern void mer_ddl_init(void);

/* Ship the ADD ops of columns that the statement just run has added. */
extern void mer_ddl_flush(void);

/* Relations truncated since the mark was taken; a trigger may truncate others. */
extern int	mer_ddl_truncated_mark(void);
extern List *mer_ddl_take_truncated(int mark);

/* ---------- ddlcheck.c ---------- */

extern void mer_check_note_constraint(Oid constraint, bool altered);
extern void mer_check_note_index(Oid index);
extern void mer_check_note_drop(Oid relid);
extern void mer_check_note_rewrite(Oid relid);
extern void mer_check_attach(AlterTableStmt *stmt);
extern void mer_check_flush(void);
extern void mer_check_forget(void);
extern void mer_check_forget_subxact(SubTransactionId subxact);

/* ---------- rewrite.c ---------- */

/* Move rows to hidden ids where the statement takes their primary key away. */
extern void mer_rewrite_before_alter(AlterTableStmt *stmt);

/* ---------- gate.c ---------- */

/* Hold commits of other instances' sessions that write these relations. */
extern void mer_gate(List *relids);
extern void mer_gate_for_all(Oid relid);
extern void mer_gate_before_alter(AlterTableStmt *stmt);
extern void mer_gate_before_truncate(TruncateStmt *stmt);
extern void mer_gate_init(void);

/* ---------- sequence.c ---------- */

extern void mer_sequence_created(RangeVar *name);
extern void mer_sequence_before_alter(AlterSeqStmt *stmt);
extern void mer_sequence_after_alter(AlterSeqStmt *stmt);
extern void mer_sequence_restart_owned(List *table_oids);
extern void mer_sequence_adopt_local(RangeVar *table);
extern void mer_sequence_discard(void);

/* ---------- seqplan.c ---------- */

/* COPY FROM that leaves out an identity column; true if it was run here. */
extern bool mer_sequence_copy(ParseState *pstate, CopyStmt *stmt, uint64 *processed);

/* ---------- advisory.c ---------- */

extern void mer_advisory_init(void);
extern void mer_advisory_unlock_all(void);

/* FATAL if the session has lost its advisory locks. */
extern void mer_advisory_check(void);

/* ---------- notify.c ---------- */

extern void mer_notify_init(void);

/* False: left to PostgreSQL. */
extern bool mer_notify(NotifyStmt *stmt);
extern void mer_listen(void);
extern void mer_unlisten_all(void);

/* ---------- locktable.c ---------- */

extern void mer_lock_table(LockStmt *stmt);

/* ---------- isolation.c ---------- */

extern void mer_isolation_init(void);

#endif							/* MERIDIAN_UTILITY_H */
