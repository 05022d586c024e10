/*
 * seqstate.h
 *	  State of a sequence: in storage, or in a local file for temporary ones.
 */
#ifndef MERIDIAN_SEQSTATE_H
#define MERIDIAN_SEQSTATE_H

#include "catalog/pg_sequence.h"

#include "meridian.h"

/* The catalog's parameters of a sequence; ERROR if there is none. */
extern void mer_seq_parameters(Oid relid, FormData_pg_sequence *params);

/* The local mirror: what PostgreSQL's own ALTER SEQUENCE reads and writes. */
extern void mer_seq_local_get(Relation seq, int64 *last, bool *is_called);
extern void mer_seq_local_set(Oid relid, int64 last, bool is_called);

/* SEQUENCE, SETVAL and PEEKSEQ; each is a commit, or a read, of its own. */
extern void mer_seq_draw(int64 sid, const char *name, const FormData_pg_sequence *params,
						 int64 *first, int64 *last);
extern void mer_seq_set(int64 sid, int64 last, bool is_called);
extern bool mer_seq_peek(int64 sid, int64 *last, bool *is_called);

/* State of any sequence, temporary or not, as SELECT and pg_dump see it. */
extern void mer_seq_state(Relation seq, int64 *last, bool *is_called);

/* ---------- seqplan.c ---------- */

extern void mer_seqplan_init(void);
extern Expr *mer_identity_expr(Oid seqid, Oid typid);

#endif							/* MERIDIAN_SEQSTATE_H */
