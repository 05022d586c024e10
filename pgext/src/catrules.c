/*
 * catrules.c
 *	  The catalogs: which are part of a delta, and how their rows name the
 *	  objects they belong to.
 */
#include "catdelta.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/catversion.h"
#include "catalog/namespace.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_am.h"
#include "catalog/pg_amop.h"
#include "catalog/pg_amproc.h"
#include "catalog/pg_attrdef.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_auth_members.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_cast.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_conversion.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_default_acl.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_description.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_event_trigger.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_init_privs.h"
#include "catalog/pg_language.h"
#include "catalog/pg_largeobject.h"
#include "catalog/pg_largeobject_metadata.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_parameter_acl.h"
#include "catalog/pg_partitioned_table.h"
#include "catalog/pg_policy.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_publication.h"
#include "catalog/pg_publication_namespace.h"
#include "catalog/pg_publication_rel.h"
#include "catalog/pg_range.h"
#include "catalog/pg_replication_origin.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_seclabel.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_shdepend.h"
#include "catalog/pg_shdescription.h"
#include "catalog/pg_shseclabel.h"
#include "catalog/pg_statistic.h"
#include "catalog/pg_statistic_ext.h"
#include "catalog/pg_statistic_ext_data.h"
#include "catalog/pg_subscription.h"
#include "catalog/pg_subscription_rel.h"
#include "catalog/pg_tablespace.h"
#include "catalog/pg_transform.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_ts_config.h"
#include "catalog/pg_ts_config_map.h"
#include "catalog/pg_ts_dict.h"
#include "catalog/pg_ts_parser.h"
#include "catalog/pg_ts_template.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "storage/lwlock.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"

PG_FUNCTION_INFO_V1(mer_next_oid);

#define IN_SCHEMA(att) {{NamespaceRelationId, 0, att}}
#define OF_RELATION(att) {{RelationRelationId, 0, att}}
#define OF_RELATIONS(a, b) {{RelationRelationId, 0, a}, {RelationRelationId, 0, b}}
#define OF_SCHEMA_AND_RELATION(a, b) {{NamespaceRelationId, 0, a}, {RelationRelationId, 0, b}}
#define OF_TYPE(att) {{TypeRelationId, 0, att}}
#define OF_TYPES(a, b) {{TypeRelationId, 0, a}, {TypeRelationId, 0, b}}
#define OF_FUNCTION(att) {{ProcedureRelationId, 0, att}}
#define OF_OBJECT(cls, att) {{InvalidOid, cls, att}}
#define OF_OBJECTS(c1, a1, c2, a2) {{InvalidOid, c1, a1}, {InvalidOid, c2, a2}}

const MerCatalogRule mer_catalog_rules[] = {
	/* objects that others name */
	{NamespaceRelationId, MERCAT_SHIP, {{0}}},
	{RelationRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_class_relnamespace)},
	{TypeRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_type_typnamespace)},
	{ProcedureRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_proc_pronamespace)},
	{OperatorRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_operator_oprnamespace)},
	{OperatorFamilyRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_opfamily_opfnamespace)},
	{OperatorClassRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_opclass_opcnamespace)},
	{CollationRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_collation_collnamespace)},
	{ConversionRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_conversion_connamespace)},
	{StatisticExtRelationId, MERCAT_SHIP, OF_SCHEMA_AND_RELATION(Anum_pg_statistic_ext_stxnamespace,
																  Anum_pg_statistic_ext_stxrelid)},
	{TSConfigRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_ts_config_cfgnamespace)},
	{TSDictionaryRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_ts_dict_dictnamespace)},
	{TSParserRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_ts_parser_prsnamespace)},
	{TSTemplateRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_ts_template_tmplnamespace)},
	{ConstraintRelationId, MERCAT_SHIP, OF_SCHEMA_AND_RELATION(Anum_pg_constraint_connamespace,
																Anum_pg_constraint_conrelid)},
	{DefaultAclRelationId, MERCAT_SHIP, IN_SCHEMA(Anum_pg_default_acl_defaclnamespace)},

	/* parts of relations, types and functions */
	{AttributeRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_attribute_attrelid)},
	{AttrDefaultRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_attrdef_adrelid)},
	{IndexRelationId, MERCAT_SHIP, OF_RELATIONS(Anum_pg_index_indexrelid, Anum_pg_index_indrelid)},
	{InheritsRelationId, MERCAT_SHIP, OF_RELATIONS(Anum_pg_inherits_inhrelid, Anum_pg_inherits_inhparent)},
	{RewriteRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_rewrite_ev_class)},
	{TriggerRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_trigger_tgrelid)},
	{PolicyRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_policy_polrelid)},
	{SequenceRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_sequence_seqrelid)},
	{PartitionedRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_partitioned_table_partrelid)},
	{ForeignTableRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_foreign_table_ftrelid)},
	{PublicationRelRelationId, MERCAT_SHIP, OF_RELATION(Anum_pg_publication_rel_prrelid)},
	{InvalidOid, MERCAT_SHIP, OF_RELATION(1)},
	{EnumRelationId, MERCAT_SHIP, OF_TYPE(Anum_pg_enum_enumtypid)},
	{RangeRelationId, MERCAT_SHIP, OF_TYPE(Anum_pg_range_rngtypid)},
	{TransformRelationId, MERCAT_SHIP, OF_TYPE(Anum_pg_transform_trftype)},
	{CastRelationId, MERCAT_SHIP, OF_TYPES(Anum_pg_cast_castsource, Anum_pg_cast_casttarget)},
	{AggregateRelationId, MERCAT_SHIP, OF_FUNCTION(Anum_pg_aggregate_aggfnoid)},

	/* objects without a schema */
	{AccessMethodRelationId, MERCAT_SHIP, {{0}}},
	{AccessMethodOperatorRelationId, MERCAT_SHIP, {{0}}},
	{AccessMethodProcedureRelationId, MERCAT_SHIP, {{0}}},
	{LanguageRelationId, MERCAT_SHIP, {{0}}},
	{EventTriggerRelationId, MERCAT_SHIP, {{0}}},
	{ExtensionRelationId, MERCAT_SHIP, {{0}}},
	{ForeignDataWrapperRelationId, MERCAT_SHIP, {{0}}},
	{ForeignServerRelationId, MERCAT_SHIP, {{0}}},
	{UserMappingRelationId, MERCAT_SHIP, {{0}}},
	{PublicationRelationId, MERCAT_SHIP, {{0}}},
	{PublicationNamespaceRelationId, MERCAT_SHIP, {{0}}},
	{TSConfigMapRelationId, MERCAT_SHIP, {{0}}},

	/* shared by all databases */
	{AuthIdRelationId, MERCAT_SHIP, {{0}}},
	{AuthMemRelationId, MERCAT_SHIP, {{0}}},
	{DbRoleSettingRelationId, MERCAT_SHIP, {{0}}},
	{ParameterAclRelationId, MERCAT_SHIP, {{0}}},
	{SharedDescriptionRelationId, MERCAT_SHIP, {{0}}},
	{SharedSecLabelRelationId, MERCAT_SHIP, {{0}}},
	{DatabaseRelationId, MERCAT_SHIP, {{0}}},

	/* about objects of any kind */
	{DependRelationId, MERCAT_SHIP, OF_OBJECTS(Anum_pg_depend_classid, Anum_pg_depend_objid,
											   Anum_pg_depend_refclassid, Anum_pg_depend_refobjid)},
	{SharedDependRelationId, MERCAT_SHIP, OF_OBJECT(Anum_pg_shdepend_classid, Anum_pg_shdepend_objid)},
	{DescriptionRelationId, MERCAT_SHIP, OF_OBJECT(Anum_pg_description_classoid, Anum_pg_description_objoid)},
	{SecLabelRelationId, MERCAT_SHIP, OF_OBJECT(Anum_pg_seclabel_classoid, Anum_pg_seclabel_objoid)},
	{InitPrivsRelationId, MERCAT_SHIP, OF_OBJECT(Anum_pg_init_privs_classoid, Anum_pg_init_privs_objoid)},

	/* shipped apart from the catalog (statistics.c) */
	{StatisticRelationId, MERCAT_LOCAL, OF_RELATION(Anum_pg_statistic_starelid)},
	{StatisticExtDataRelationId, MERCAT_LOCAL,
		{{StatisticExtRelationId, 0, Anum_pg_statistic_ext_data_stxoid}}},

	{LargeObjectRelationId, MERCAT_REFUSED, {{0}}},
	{LargeObjectMetadataRelationId, MERCAT_REFUSED, {{0}}},
	{ReplicationOriginRelationId, MERCAT_REFUSED, {{0}}},
	{SubscriptionRelationId, MERCAT_REFUSED, {{0}}},
	{SubscriptionRelRelationId, MERCAT_REFUSED, {{0}}},
	{TableSpaceRelationId, MERCAT_REFUSED, {{0}}},
};

const int	mer_catalog_nrules = lengthof(mer_catalog_rules);

const MerCatalogRule *
mer_catalog_rule(Oid id)
{
	int			i;

	for (i = 0; i < mer_catalog_nrules; i++)
		if (mer_catalog_rules[i].relid == id)
			return &mer_catalog_rules[i];
	return NULL;
}

Oid
mer_catalog_relid(const MerCatalogRule *rule)
{
	Oid			schema;

	if (OidIsValid(rule->relid))
		return rule->relid;
	schema = get_namespace_oid("meridian", true);
	return OidIsValid(schema) ? get_relname_relid("relation", schema) : InvalidOid;
}

MerColumn *
mer_catalog_columns(TupleDesc desc)
{
	MerColumn  *cols = palloc(sizeof(MerColumn) * desc->natts);
	int			i;

	for (i = 0; i < desc->natts; i++)
		mer_column_init(&cols[i], TupleDescAttr(desc, i));
	return cols;
}

int
mer_catalog_key(Relation rel, AttrNumber *attnums, Oid *index)
{
	Relation	pkey;
	int			n;
	int			i;

	*index = RelationGetPrimaryKeyIndex(rel, false);
	if (!OidIsValid(*index))
		return 0;
	pkey = index_open(*index, AccessShareLock);
	n = IndexRelationGetNumberOfKeyAttributes(pkey);
	for (i = 0; i < n; i++)
		attnums[i] = pkey->rd_index->indkey.values[i];
	index_close(pkey, AccessShareLock);
	return n;
}

/*
 * While a template is built: the object id to go on from (meridian--0.1.sql).
 */
Datum
mer_next_oid(PG_FUNCTION_ARGS)
{
	Oid			oid = PG_GETARG_OID(0);

	if (IsUnderPostmaster || oid < FirstUnpinnedObjectId || oid >= FirstNormalObjectId)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("object ids are chosen only while a template is built")));
	LWLockAcquire(OidGenLock, LW_EXCLUSIVE);
	TransamVariables->nextOid = oid;
	TransamVariables->oidCount = 0;
	LWLockRelease(OidGenLock);
	PG_RETURN_VOID();
}

int64
mer_template_fingerprint(void)
{
	static int64 fingerprint = 0;
	Oid			regclass = REGCLASSOID;
	List	   *nextval;
	uint64		h;

	if (fingerprint != 0)
		return fingerprint;
	nextval = list_make2(makeString("pg_catalog"), makeString("nextval"));
	h = hash_combine64(get_am_oid("btree", true), get_am_oid("meridian", true));
	h = hash_combine64(h, GetDefaultOpClass(INT4OID, get_am_oid("btree", true)));
	h = hash_combine64(h, get_role_oid("admin", true));
	h = hash_combine64(h, get_namespace_oid("sys", true));
	h = hash_combine64(h, LookupFuncName(nextval, 1, &regclass, true));
	fingerprint = (int64) (h & PG_INT64_MAX) | 1;
	return fingerprint;
}
