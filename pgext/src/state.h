/*
 * state.h
 *	  Named numbers of this instance, rows of the table meridian.state: the
 *	  version of its catalog, stamps of the statistics it has.
 *
 * They change in the transaction that changes what they speak of.
 */
#ifndef MERIDIAN_STATE_H
#define MERIDIAN_STATE_H

#include "postgres.h"

/* InvalidOid: before the extension is there. */
extern Oid	mer_state_table(void);

/* 0: there is none of this name. */
extern int64 mer_state_get(const char *name);

/* 0 removes it. */
extern void mer_state_set(const char *name, int64 value);

#endif							/* MERIDIAN_STATE_H */
