/*
 * catdelta.h
 *	  Catalog deltas: what one transaction changed in the catalogs, taken at
 *	  its commit (catcapture.c) and applied elsewhere or later (catapply.c).
 *
 * A delta is msgpack:
 *
 *	[format, catalog_version_no, template, database, [catalog...]]
 *	catalog = [id, n_columns, [row...], [gone...]]
 *
 * id is the OID of a system catalog, 0 for meridian.relation.  A row, new or
 * gone, holds all columns, as rows in storage do (docs/formats.md).  A new row
 * replaces the row of its primary key, if there is one.
 */
#ifndef MERIDIAN_CATDELTA_H
#define MERIDIAN_CATDELTA_H

#include "meridian.h"

#define MER_DELTA_FORMAT 1
#define MER_DELTA_FIELDS 5
#define MER_DELTA_MAX_BYTES (8 * 1024 * 1024)
#define MER_CATALOG_SID 1
#define MER_CATALOG_REFS 2

struct PlannedStmt;
struct MerBytes;

typedef enum MerCatalogMode
{
	MERCAT_SHIP,				/* part of the delta */
	MERCAT_LOCAL,				/* statistics and the like: each instance has its own */
	MERCAT_REFUSED				/* a change cannot be carried to other instances */
} MerCatalogMode;

/*
 * One reference from a row to an object: a fixed class, or the class in
 * class_att.  A row that refers to a temporary object is temporary itself.
 */
typedef struct MerCatalogRef
{
	Oid			classid;
	AttrNumber	class_att;
	AttrNumber	att;
} MerCatalogRef;

typedef struct MerCatalogRule
{
	Oid			relid;			/* InvalidOid: meridian.relation */
	MerCatalogMode mode;
	MerCatalogRef refs[MER_CATALOG_REFS];
} MerCatalogRule;

/* Every catalog, each after those that its references name. */
extern const MerCatalogRule mer_catalog_rules[];
extern const int mer_catalog_nrules;

/* The rule of a catalog by the id of a delta, or NULL. */
extern const MerCatalogRule *mer_catalog_rule(Oid id);

/* The relation of a rule, or InvalidOid where it does not exist (meridian.relation). */
extern Oid	mer_catalog_relid(const MerCatalogRule *rule);

/* Columns as in rows of storage; palloc'd, one per attribute. */
extern MerColumn *mer_catalog_columns(TupleDesc desc);

/* Attribute numbers of the primary key; 0 where there is none. */
extern int	mer_catalog_key(Relation rel, AttrNumber *attnums, Oid *index);

/* Names the object ids that the template gave; deltas of another template do not fit. */
extern int64 mer_template_fingerprint(void);

/*
 * Append the delta of the running transaction and learn whom it concerns.
 * False: nothing to ship.  *secret: the statement's text may hold a password.
 */
struct MerReach;
extern bool mer_catalog_capture(StringInfo out, struct MerReach *reach, bool *secret);

/* Could this session have written the catalog in the running transaction? */
extern bool mer_catalog_maybe_written(Oid relid);

/*
 * Rows of one catalog that the running transaction has written (row: all its
 * columns, encoded) or that are gone (row->data NULL), those of temporary
 * objects left out.  key: the encoded primary key.
 */
typedef void (*MerCatalogChange) (void *arg, Relation catalog, HeapTuple tuple,
								  const struct MerBytes *key, const struct MerBytes *row);
extern void mer_catalog_changes(Oid relid, MerCatalogChange callback, void *arg);

/*
 * Apply a delta in the running transaction.  kind: of its reach; what is merely
 * additive needs no locks.
 */
extern void mer_catalog_apply(const char *delta, uint32 len, int kind);

/* Version of this instance's catalog (state.h); the lock is held to the end of the transaction. */
extern int64 mer_catalog_version(void);
extern void mer_catalog_version_lock(void);
extern void mer_catalog_version_set(int64 version);

/* The text of a statement, for the audit of the running transaction. */
extern void mer_catalog_note_statement(struct PlannedStmt *pstmt, const char *text);

#endif							/* MERIDIAN_CATDELTA_H */
