/*
 * reach.c
 *	  Whom a catalog delta concerns: nobody, the users of some relations, or
 *	  anybody.
 *
 * Only what is known to change nothing for others counts as additive: objects
 * made in this very transaction, privileges, comments, statistics, bookkeeping
 * of dependencies.  A change of a relation that existed concerns those who use
 * its storage ids or those of its indexes, and, for a partition, of the whole
 * tree.  Everything else is global.
 */
#include "reach.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/index.h"
#include "catalog/partition.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_amop.h"
#include "catalog/pg_amproc.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_auth_members.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_cast.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_default_acl.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_description.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_event_trigger.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_parameter_acl.h"
#include "catalog/pg_partitioned_table.h"
#include "catalog/pg_policy.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_range.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_shdepend.h"
#include "catalog/pg_shdescription.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "storage/lockdefs.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

/* More relations than this concern everybody. */
#define SIDS_MAX 10000

/* meridian.relation (relmap.c) */
#define Anum_relation_relid 1
#define Anum_relation_sid 2

/* A library for tests of deltas alone has no relations in storage. */
extern int64 mer_relmap_sid(Oid relid, bool missing_ok) __attribute__((weak));

typedef struct Object
{
	Oid			classid;
	Oid			oid;
} Object;

typedef struct Change
{
	MerReach   *reach;
	Oid			classid;
	TupleDesc	desc;
	HeapTuple	before;
	HeapTuple	after;
} Change;

void
mer_reach_init(MerReach *reach)
{
	HASHCTL		ctl = {.keysize = sizeof(Object),.entrysize = sizeof(Object)};

	memset(reach, 0, sizeof(MerReach));
	ctl.hcxt = CurrentMemoryContext;
	reach->created = hash_create("created objects", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static bool
is_created(MerReach *reach, Oid classid, Oid oid)
{
	Object		key = {classid, oid};

	return hash_search(reach->created, &key, HASH_FIND, NULL) != NULL;
}

static void
add_sid(MerReach *reach, int64 sid)
{
	int			i;

	for (i = 0; i < reach->nsids; i++)
		if (reach->sids[i] == sid)
			return;
	if (sid == 0 || reach->global)
		return;
	if (reach->nsids == SIDS_MAX)
	{
		reach->global = true;
		return;
	}
	if (reach->nsids == reach->max_sids)
	{
		reach->max_sids = reach->max_sids ? reach->max_sids * 2 : 64;
		reach->sids = reach->sids ? repalloc_array(reach->sids, int64, reach->max_sids)
			: palloc_array(int64, reach->max_sids);
	}
	reach->sids[reach->nsids++] = sid;
}

/* ---------- columns ---------- */

/* Of the row as it was, if it was there; else as it is. */
static Oid
oid_column(const Change *c, AttrNumber att)
{
	bool		isnull;
	Datum		value = heap_getattr(c->before ? c->before : c->after, att, c->desc, &isnull);

	return isnull ? InvalidOid : DatumGetObjectId(value);
}

static bool
same_column(const Change *c, AttrNumber att)
{
	bool		was_null,
				is_null;
	Datum		was = heap_getattr(c->before, att, c->desc, &was_null);
	Datum		is = heap_getattr(c->after, att, c->desc, &is_null);
	CompactAttribute *attr = TupleDescCompactAttr(c->desc, att - 1);

	if (was_null || is_null)
		return was_null == is_null;
	return datum_image_eq(was, is, attr->attbyval, attr->attlen);
}

/* Did only these columns change? */
static bool
only(const Change *c, const AttrNumber *columns, int n)
{
	int			att;
	int			i;

	if (c->before == NULL || c->after == NULL)
		return false;
	for (att = 1; att <= c->desc->natts; att++)
	{
		for (i = 0; i < n && columns[i] != att; i++)
			;
		if (i == n && !same_column(c, att))
			return false;
	}
	return true;
}

#define ONLY(c, ...) \
	only(c, (const AttrNumber[]) {__VA_ARGS__}, \
		 lengthof(((const AttrNumber[]) {__VA_ARGS__})))

/* ---------- whom a row belongs to ---------- */

static void
touch(const Change *c, AttrNumber att)
{
	Oid			relid = oid_column(c, att);

	if (OidIsValid(relid) && !is_created(c->reach, RelationRelationId, relid))
		c->reach->relations = list_append_unique_oid(c->reach->relations, relid);
}

static void
global_unless_created(const Change *c, Oid classid, AttrNumber att)
{
	if (!is_created(c->reach, classid, oid_column(c, att)))
		c->reach->global = true;
}

static bool
is_new(const Change *c)
{
	return c->before == NULL;
}

/* Views and composite types have no storage id by which their users are known. */
static void
class_row(const Change *c)
{
	char		relkind;
	bool		isnull;

	if (is_new(c) ||
		ONLY(c, Anum_pg_class_relacl, Anum_pg_class_relpages, Anum_pg_class_reltuples,
			 Anum_pg_class_relallvisible, Anum_pg_class_relallfrozen,
			 Anum_pg_class_relfrozenxid, Anum_pg_class_relminmxid))
		return;
	relkind = DatumGetChar(heap_getattr(c->before, Anum_pg_class_relkind, c->desc, &isnull));
	if (relkind == RELKIND_VIEW || relkind == RELKIND_COMPOSITE_TYPE ||
		relkind == RELKIND_FOREIGN_TABLE)
		c->reach->global = true;
	else
		touch(c, Anum_pg_class_oid);
}

/*
 * Row types go with their relation, whose own row tells; array types with what
 * their elements are.
 */
static void
type_row(const Change *c)
{
	bool		is_array;

	if (is_new(c) || ONLY(c, Anum_pg_type_typacl))
		return;
	is_array = OidIsValid(oid_column(c, Anum_pg_type_typelem)) &&
		oid_column(c, Anum_pg_type_typsubscript) == F_ARRAY_SUBSCRIPT_HANDLER;
	if (!OidIsValid(oid_column(c, Anum_pg_type_typrelid)) && !is_array)
		c->reach->global = true;
}

static void
constraint_row(const Change *c)
{
	if (OidIsValid(oid_column(c, Anum_pg_constraint_contypid)))
		global_unless_created(c, TypeRelationId, Anum_pg_constraint_contypid);
	touch(c, Anum_pg_constraint_conrelid);
	touch(c, Anum_pg_constraint_confrelid);
}

/* The map of storage ids: users of the old one and of the new one. */
static void
map_row(const Change *c)
{
	bool		isnull;

	if (is_created(c->reach, RelationRelationId, oid_column(c, Anum_relation_relid)))
		return;
	touch(c, Anum_relation_relid);
	if (c->before)
		add_sid(c->reach, DatumGetInt64(heap_getattr(c->before, Anum_relation_sid, c->desc, &isnull)));
	if (c->after)
		add_sid(c->reach, DatumGetInt64(heap_getattr(c->after, Anum_relation_sid, c->desc, &isnull)));
}

/* Does the row belong to objects that have a catalog of their own?  True: done. */
static bool
part_row(const Change *c)
{
	switch (c->classid)
	{
		case AttributeRelationId:
			if (!ONLY(c, Anum_pg_attribute_attacl, Anum_pg_attribute_attstattarget))
				touch(c, Anum_pg_attribute_attrelid);
			return true;
		case AttrDefaultRelationId:
			touch(c, Anum_pg_attrdef_adrelid);
			return true;
		case IndexRelationId:
			touch(c, Anum_pg_index_indexrelid);
			touch(c, Anum_pg_index_indrelid);
			return true;
		case InheritsRelationId:
			touch(c, Anum_pg_inherits_inhrelid);
			touch(c, Anum_pg_inherits_inhparent);
			return true;
		case TriggerRelationId:
			touch(c, Anum_pg_trigger_tgrelid);
			return true;
		case SequenceRelationId:
			touch(c, Anum_pg_sequence_seqrelid);
			return true;
		case PartitionedRelationId:
			touch(c, Anum_pg_partitioned_table_partrelid);
			return true;
		case PublicationRelRelationId:
			touch(c, Anum_pg_publication_rel_prrelid);
			return true;
		case ConstraintRelationId:
			constraint_row(c);
			return true;
		case InvalidOid:
			map_row(c);
			return true;
		case RewriteRelationId:
			global_unless_created(c, RelationRelationId, Anum_pg_rewrite_ev_class);
			return true;
		case PolicyRelationId:
			global_unless_created(c, RelationRelationId, Anum_pg_policy_polrelid);
			return true;
		case EnumRelationId:
			/* A new label leaves the others and their order as they are. */
			if (!is_new(c))
				global_unless_created(c, TypeRelationId, Anum_pg_enum_enumtypid);
			return true;
		case RangeRelationId:
			global_unless_created(c, TypeRelationId, Anum_pg_range_rngtypid);
			return true;
		case AggregateRelationId:
			global_unless_created(c, ProcedureRelationId, Anum_pg_aggregate_aggfnoid);
			return true;
		default:
			return false;
	}
}

/* Rows that say something about objects and change none. */
static bool
note_row(const Change *c)
{
	switch (c->classid)
	{
		case DependRelationId:
		case SharedDependRelationId:
		case DescriptionRelationId:
		case SharedDescriptionRelationId:
		case DefaultAclRelationId:
		case ParameterAclRelationId:
		case StatisticExtRelationId:
		case DbRoleSettingRelationId:	/* for sessions to come */
			return true;
		default:
			return false;
	}
}

static void
object_row(const Change *c)
{
	switch (c->classid)
	{
		case RelationRelationId:
			class_row(c);
			return;
		case TypeRelationId:
			type_row(c);
			return;
		case ProcedureRelationId:
			c->reach->global |= !is_new(c) && !ONLY(c, Anum_pg_proc_proacl);
			return;
		case NamespaceRelationId:
			c->reach->global |= !is_new(c) && !ONLY(c, Anum_pg_namespace_nspacl);
			return;
		case DatabaseRelationId:
			c->reach->global |= !ONLY(c, Anum_pg_database_datacl, Anum_pg_database_datfrozenxid,
									  Anum_pg_database_datminmxid);
			return;
		case AuthIdRelationId:
			c->reach->global |= !is_new(c) &&
				!ONLY(c, Anum_pg_authid_rolpassword, Anum_pg_authid_rolvaliduntil,
					  Anum_pg_authid_rolconnlimit);
			return;
		case AuthMemRelationId:
			if (!is_created(c->reach, AuthIdRelationId, oid_column(c, Anum_pg_auth_members_roleid)))
				global_unless_created(c, AuthIdRelationId, Anum_pg_auth_members_member);
			return;
		case EventTriggerRelationId:
			c->reach->global = true;
			return;
		default:
			/* New objects add, unless they are about others: casts, members of operator families. */
			c->reach->global |= !is_new(c) || c->classid == CastRelationId ||
				c->classid == AccessMethodOperatorRelationId ||
				c->classid == AccessMethodProcedureRelationId ||
				strcmp(NameStr(TupleDescAttr(c->desc, 0)->attname), "oid") != 0;
			return;
	}
}

void
mer_reach_row(MerReach *reach, const MerCatalogRule *rule, TupleDesc desc,
			  HeapTuple before, HeapTuple after)
{
	Change		c = {reach, rule->relid, desc, before, after};

	if (before == NULL && strcmp(NameStr(TupleDescAttr(desc, 0)->attname), "oid") == 0)
	{
		Object		key = {rule->relid, oid_column(&c, 1)};

		(void) hash_search(reach->created, &key, HASH_ENTER, NULL);
	}
	if (!note_row(&c) && !part_row(&c))
		object_row(&c);
}

/* ---------- relations to storage ids ---------- */

static void
add_with_indexes(MerReach *reach, Oid relid)
{
	Relation	rel;
	List	   *indexes;

	add_sid(reach, mer_relmap_sid(relid, true));
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
		return;
	indexes = RELKIND_HAS_TABLE_AM(rel->rd_rel->relkind) ? RelationGetIndexList(rel) : NIL;
	relation_close(rel, NoLock);
	foreach_oid(index, indexes)
		add_sid(reach, mer_relmap_sid(index, true));
}

static Oid
root_of(Oid relid)
{
	return get_rel_relispartition(relid) ? llast_oid(get_partition_ancestors(relid)) : relid;
}

static void
add_relation(MerReach *reach, Oid relid)
{
	Oid			table = relid;
	char		relkind = get_rel_relkind(relid);

	if (relkind == RELKIND_INDEX || relkind == RELKIND_PARTITIONED_INDEX)
		table = IndexGetRelation(relid, true);
	/* A relation that is gone has left its storage ids in the map's old rows. */
	if (relkind == '\0' || !OidIsValid(table))
		return;
	foreach_oid(member, find_all_inheritors(root_of(table), NoLock, NULL))
		add_with_indexes(reach, member);
}

bool
mer_reach_is_additive(const MerReach *reach)
{
	return !reach->global && reach->relations == NIL;
}

void
mer_reach_put(MerReach *reach, StringInfo out)
{
	int			kind;
	int			i;

	if (mer_relmap_sid != NULL && !reach->global)
		foreach_oid(relid, reach->relations)
			add_relation(reach, relid);
	kind = reach->global ? MER_REACH_GLOBAL
		: mer_reach_is_additive(reach) ? MER_REACH_ADDITIVE : MER_REACH_RELATIONS;
	mp_put_array(out, 2);
	mp_put_int(out, kind);
	mp_put_array(out, kind == MER_REACH_RELATIONS ? reach->nsids : 0);
	for (i = 0; kind == MER_REACH_RELATIONS && i < reach->nsids; i++)
		mp_put_int(out, reach->sids[i]);
}

int
mer_reach_kind(const char *data, uint32 len)
{
	MpReader	r = {data, data + len};

	if (mp_get_array(&r) != 2)
		mp_malformed("reach of another length");
	return (int) mp_get_int(&r);
}
