/*
 * reach.h
 *	  Whom a catalog delta concerns (docs/rfcs, "Catalog coherence", point 1).
 */
#ifndef MERIDIAN_REACH_H
#define MERIDIAN_REACH_H

#include "catdelta.h"

#include "access/htup.h"
#include "nodes/pg_list.h"
#include "utils/hsearch.h"

#define MER_REACH_ADDITIVE 0
#define MER_REACH_RELATIONS 1
#define MER_REACH_GLOBAL 2

typedef struct MerReach
{
	HTAB	   *created;		/* objects that this transaction has made */
	bool		global;
	List	   *relations;		/* that existed before and mean something else now */
	int			nsids;
	int			max_sids;
	int64	   *sids;			/* storage ids that they had before, or have now */
} MerReach;

extern void mer_reach_init(MerReach *reach);

/*
 * One changed row of a catalog: before NULL, it is new; after NULL, it is gone.
 * Catalogs come in the order of mer_catalog_rules.
 */
extern void mer_reach_row(MerReach *reach, const MerCatalogRule *rule, TupleDesc desc,
						  HeapTuple before, HeapTuple after);

extern bool mer_reach_is_additive(const MerReach *reach);

/* Append [kind, [sid...]]. */
extern void mer_reach_put(MerReach *reach, StringInfo out);

/* The kind in an encoded reach; GLOBAL where there is none. */
extern int	mer_reach_kind(const char *data, uint32 len);

#endif							/* MERIDIAN_REACH_H */
