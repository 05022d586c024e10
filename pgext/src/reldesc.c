/*
 * reldesc.c
 *	  Descriptions of our relations (MerRel): what they consist of and how they
 *	  are keyed, cached with the relation.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "store.h"

/* What rd_amcache points to; the core frees it, never the MerRel. */
typedef struct MerRelRef
{
	MerRel	   *rel;
	uint64		generation;
} MerRelRef;

typedef struct MerRelBox
{
	struct MerRelBox *next;
	MemoryContext cxt;
} MerRelBox;

#define MAX_DESCRIPTIONS 4096

static uint64 generation = 1;

/*
 * Descriptions that were replaced while somebody may still use them; freed at
 * the end of the transaction.
 */
static HTAB *current;
static MerRelBox *retired;

typedef struct CurrentEntry
{
	Oid			relid;			/* hash key */
	MerRel	   *rel;
	MemoryContext cxt;
} CurrentEntry;

/* The map has changed: what is cached may be wrong. */
void
mer_reldesc_invalidate(void)
{
	generation++;
}

/* At the end of a transaction nobody uses an old description any more. */
void
mer_reldesc_end(void)
{
	while (retired)
	{
		MerRelBox  *box = retired;

		retired = box->next;
		MemoryContextDelete(box->cxt);
	}
}

bool
mer_is_table(Relation rel)
{
	return rel->rd_tableam == mer_table_routine();
}

bool
mer_is_index(Relation rel)
{
	return rel->rd_indam != NULL && rel->rd_indam->ambuild == mer_index_build;
}

static Oid
base_type(Oid typid)
{
	return getBaseType(typid);
}

static void
fill_columns(MerRel *mr, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	mr->natts = desc->natts;
	mr->cols = palloc0(Max(desc->natts, 1) * sizeof(MerColumn));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
		{
			mr->cols[i].attnum = i + 1;
			mr->cols[i].dropped = true;
		}
		else
			mer_column_init(&mr->cols[i], att);
	}
}

static void
fill_keys(MerRel *mr, Relation index)
{
	mr->nkeys = IndexRelationGetNumberOfKeyAttributes(index);
	mr->keys = palloc0(mr->nkeys * sizeof(MerKeyColumn));
	for (int i = 0; i < mr->nkeys; i++)
	{
		MerKeyColumn *k = &mr->keys[i];
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(index), i);
		int16		option = index->rd_indoption[i];

		k->attnum = index->rd_index->indkey.values[i];
		k->opfamily = index->rd_opfamily[i];
		k->typid = base_type(att->atttypid);
		k->collation = index->rd_indcollation[i];
		k->desc = (option & INDOPTION_DESC) != 0;
		k->nulls_first = (option & INDOPTION_NULLS_FIRST) != 0;
	}
}

static void
fill_table_key(MerRel *mr, Relation rel)
{
	Oid			pkey = RelationGetPrimaryKeyIndex(rel, true);
	Relation	index;

	if (!OidIsValid(pkey))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("table \"%s\" is organised by a primary key that was dropped",
						RelationGetRelationName(rel)),
				 errhint("Create a new table with the key you want and copy the rows.")));
	index = index_open(pkey, AccessShareLock);
	fill_keys(mr, index);
	index_close(index, NoLock);
}

static void
fill_index(MerRel *mr, Relation rel)
{
	int64		sid = 0;
	bool		organised = false;

	mr->is_index = true;
	mr->table_oid = rel->rd_index->indrelid;
	mr->unique = rel->rd_index->indisunique;
	mr->nulls_not_distinct = rel->rd_index->indnullsnotdistinct;
	if (!mer_relmap_get(mr->table_oid, &sid, &organised))
		elog(ERROR, "meridian: table %u of index \"%s\" has no storage id",
			 mr->table_oid, RelationGetRelationName(rel));
	mr->table_sid = sid;
	mr->organised = organised;
	mr->primary_of_organised = organised && rel->rd_index->indisprimary;
	if (mr->primary_of_organised)
		mr->sid = sid;
	fill_keys(mr, rel);
}

/* In the current memory context. */
MerRel *
mer_reldesc_build(Relation rel, int64 sid, bool organised)
{
	MerRel	   *mr = palloc0(sizeof(MerRel));

	mr->relid = RelationGetRelid(rel);
	mr->sid = sid;
	mr->organised = organised;
	fill_columns(mr, rel);
	if (rel->rd_rel->relkind == RELKIND_INDEX)
		fill_index(mr, rel);
	else if (organised)
		fill_table_key(mr, rel);
	return mr;
}

static MerRel *
load_rel(Relation rel)
{
	int64		sid = 0;
	bool		organised = false;
	MerRel	   *mr;

	if (rel->rd_rel->relkind == RELKIND_INDEX)
	{
		mr = mer_reldesc_build(rel, 0, false);
		/* 0 while the index is being created: it has no entries yet. */
		if (!mr->primary_of_organised)
			mr->sid = mer_relmap_sid(RelationGetRelid(rel), true);
		return mr;
	}
	if (!mer_relmap_get(RelationGetRelid(rel), &sid, &organised))
		elog(ERROR, "meridian: table \"%s\" has no storage id",
			 RelationGetRelationName(rel));
	mr = mer_reldesc_build(rel, sid, organised);
	mr->marks_sid = mer_rewrite_marks_sid(RelationGetRelid(rel));
	return mr;
}

static CurrentEntry *
current_entry(Oid relid)
{
	CurrentEntry *entry;
	bool		found;

	if (current == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(CurrentEntry)};

		current = hash_create("meridian relations", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	entry = hash_search(current, &relid, HASH_ENTER, &found);
	if (!found)
	{
		entry->rel = NULL;
		entry->cxt = NULL;
	}
	return entry;
}

static void
retire(CurrentEntry *entry)
{
	MerRelBox  *box;

	if (entry->cxt == NULL)
		return;
	box = MemoryContextAlloc(entry->cxt, sizeof(MerRelBox));
	box->cxt = entry->cxt;
	box->next = retired;
	retired = box;
	entry->cxt = NULL;
	entry->rel = NULL;
}

/* Relations that are gone leave their descriptions behind: start over at times. */
static void
retire_all(void)
{
	HASH_SEQ_STATUS seq;
	CurrentEntry *entry;

	hash_seq_init(&seq, current);
	while ((entry = hash_seq_search(&seq)) != NULL)
		retire(entry);
	hash_destroy(current);
	current = NULL;
	mer_reldesc_invalidate();
}

MerRel *
mer_rel(Relation rel)
{
	MerRelRef  *ref = rel->rd_amcache;
	CurrentEntry *entry;
	MemoryContext cxt,
				old;
	MerRel	   *mr;

	if (likely(ref != NULL && ref->generation == generation))
		return ref->rel;
	cxt = AllocSetContextCreate(CacheMemoryContext, "meridian relation",
								ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		mr = load_rel(rel);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(cxt);
		PG_RE_THROW();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);

	if (current && hash_get_num_entries(current) >= MAX_DESCRIPTIONS)
		retire_all();
	entry = current_entry(RelationGetRelid(rel));
	retire(entry);
	entry->cxt = cxt;
	entry->rel = mr;
	if (rel->rd_amcache == NULL)
		rel->rd_amcache = MemoryContextAlloc(rel->rd_indexcxt ? rel->rd_indexcxt :
											 CacheMemoryContext, sizeof(MerRelRef));
	ref = rel->rd_amcache;
	ref->rel = mr;
	ref->generation = generation;
	return mr;
}
