/*
 * joinpush.h
 *	  Joins that fetch many keys per round trip: shared by the planner
 *	  (joinpush.c) and the executor (joinexec.c).
 */
#ifndef MERIDIAN_JOINPUSH_H
#define MERIDIAN_JOINPUSH_H

#include "push.h"

/* Outer rows per round trip, once a join has got going. */
#define MER_JOIN_BATCH 256

extern const CustomScanMethods mer_join_scan_methods;

extern void mer_joinpush_init(void);
extern void mer_join_pathlist(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outer,
							  RelOptInfo *inner, JoinType jointype,
							  JoinPathExtraData *extra);

#endif							/* MERIDIAN_JOINPUSH_H */
