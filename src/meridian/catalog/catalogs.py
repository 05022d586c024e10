"""PostgreSQL's catalogs that deltas carry: which columns identify a row, and which are OIDs.

The order is that of deltas. A test compares this table with the catalogs of a server and with
`pgext/src/catrules.c`.
"""

from __future__ import annotations

from typing import NamedTuple

FIRST_USER_OID = 16384
"""Objects of the template have smaller ids, and only they (`pgext/sql/meridian--0.1.sql`)."""


class Catalog(NamedTuple):
    """Column numbers begin at 1."""

    id: int
    """OID; 0 for meridian.relation, as in deltas."""
    name: str
    key: tuple[int, ...]
    """The primary key; empty where there is none: then equal rows may occur several times."""
    oids: tuple[int, ...]
    """OIDs among the key's columns (among all columns where there is no key)."""


CATALOGS = (
    Catalog(2615, "pg_namespace", (1,), (1,)),
    Catalog(1259, "pg_class", (1,), (1,)),
    Catalog(1247, "pg_type", (1,), (1,)),
    Catalog(1255, "pg_proc", (1,), (1,)),
    Catalog(2617, "pg_operator", (1,), (1,)),
    Catalog(2753, "pg_opfamily", (1,), (1,)),
    Catalog(2616, "pg_opclass", (1,), (1,)),
    Catalog(3456, "pg_collation", (1,), (1,)),
    Catalog(2607, "pg_conversion", (1,), (1,)),
    Catalog(3381, "pg_statistic_ext", (1,), (1,)),
    Catalog(3602, "pg_ts_config", (1,), (1,)),
    Catalog(3600, "pg_ts_dict", (1,), (1,)),
    Catalog(3601, "pg_ts_parser", (1,), (1,)),
    Catalog(3764, "pg_ts_template", (1,), (1,)),
    Catalog(2606, "pg_constraint", (1,), (1,)),
    Catalog(826, "pg_default_acl", (1,), (1,)),
    Catalog(1249, "pg_attribute", (1, 5), (1,)),
    Catalog(2604, "pg_attrdef", (1,), (1,)),
    Catalog(2610, "pg_index", (1,), (1,)),
    Catalog(2611, "pg_inherits", (1, 3), (1,)),
    Catalog(2618, "pg_rewrite", (1,), (1,)),
    Catalog(2620, "pg_trigger", (1,), (1,)),
    Catalog(3256, "pg_policy", (1,), (1,)),
    Catalog(2224, "pg_sequence", (1,), (1,)),
    Catalog(3350, "pg_partitioned_table", (1,), (1,)),
    Catalog(3118, "pg_foreign_table", (1,), (1,)),
    Catalog(6106, "pg_publication_rel", (1,), (1,)),
    Catalog(0, "meridian.relation", (1,), (1,)),
    Catalog(3501, "pg_enum", (1,), (1,)),
    Catalog(3541, "pg_range", (1,), (1,)),
    Catalog(3576, "pg_transform", (1,), (1,)),
    Catalog(2605, "pg_cast", (1,), (1,)),
    Catalog(2600, "pg_aggregate", (1,), (1,)),
    Catalog(2601, "pg_am", (1,), (1,)),
    Catalog(2602, "pg_amop", (1,), (1,)),
    Catalog(2603, "pg_amproc", (1,), (1,)),
    Catalog(2612, "pg_language", (1,), (1,)),
    Catalog(3466, "pg_event_trigger", (1,), (1,)),
    Catalog(3079, "pg_extension", (1,), (1,)),
    Catalog(2328, "pg_foreign_data_wrapper", (1,), (1,)),
    Catalog(1417, "pg_foreign_server", (1,), (1,)),
    Catalog(1418, "pg_user_mapping", (1,), (1,)),
    Catalog(6104, "pg_publication", (1,), (1,)),
    Catalog(6237, "pg_publication_namespace", (1,), (1,)),
    Catalog(3603, "pg_ts_config_map", (1, 2, 3), (1,)),
    Catalog(1260, "pg_authid", (1,), (1,)),
    Catalog(1261, "pg_auth_members", (1,), (1,)),
    Catalog(2964, "pg_db_role_setting", (1, 2), (1, 2)),
    Catalog(6243, "pg_parameter_acl", (1,), (1,)),
    Catalog(2396, "pg_shdescription", (1, 2), (1, 2)),
    Catalog(3592, "pg_shseclabel", (1, 2, 3), (1, 2)),
    Catalog(1262, "pg_database", (1,), (1,)),
    Catalog(2608, "pg_depend", (), (1, 2, 4, 5)),
    Catalog(1214, "pg_shdepend", (), (1, 2, 3, 5, 6)),
    Catalog(2609, "pg_description", (1, 2, 3), (1, 2)),
    Catalog(3596, "pg_seclabel", (1, 2, 3, 4), (1, 2)),
    Catalog(3394, "pg_init_privs", (1, 2, 3), (1, 2)),
)

BY_ID = {catalog.id: (at, catalog) for at, catalog in enumerate(CATALOGS)}
