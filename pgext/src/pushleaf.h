/*
 * pushleaf.h
 *	  The leaves of expressions that storage can evaluate: recognised by
 *	  pushexpr.c, encoded by pushfilter.c.
 */
#ifndef MERIDIAN_PUSHLEAF_H
#define MERIDIAN_PUSHLEAF_H

#include "push.h"

/* Comparisons of docs/formats.md; the first five are btree's strategies, too. */
#define COMPARE_LT 1
#define COMPARE_LE 2
#define COMPARE_EQ 3
#define COMPARE_GE 4
#define COMPARE_GT 5
#define COMPARE_NE 6

typedef enum LeafKind
{
	LEAF_BOOL,					/* boolean column = value */
	LEAF_IS_NULL,
	LEAF_IS_NOT_NULL,
	LEAF_COMPARE,
	LEAF_DISTINCT,				/* IS DISTINCT FROM value */
	LEAF_IN,
	LEAF_NOT_IN,
	LEAF_BOOL_TEST				/* IS [NOT] TRUE/FALSE */
} LeafKind;

typedef struct Leaf
{
	LeafKind	kind;
	AttrNumber	attnum;
	int			cmp;			/* LEAF_COMPARE */
	bool		bool_value;		/* LEAF_BOOL, LEAF_BOOL_TEST */
	bool		negated;		/* LEAF_BOOL_TEST: IS NOT; LEAF_DISTINCT: IS NOT DISTINCT */
	Expr	   *value;			/* LEAF_COMPARE, LEAF_DISTINCT; the array of LEAF_IN */
	MerColumn	type;			/* of the value, or of the array's elements */
} Leaf;

/* Is the expression such a leaf over a column of varno?  Fills leaf. */
extern bool mer_match_leaf(Expr *expr, Index varno, Leaf *leaf);

#endif							/* MERIDIAN_PUSHLEAF_H */
