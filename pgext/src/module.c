/*
 * module.c
 *	  Entry point of the extension: settings, and the order in which the
 *	  modules start.
 *
 * The library is loaded through shared_preload_libraries, so everything here
 * runs once, in the postmaster (or in the single-user backend that builds a
 * template).
 */
#include "meridian.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"

#include "wire.h"

PG_MODULE_MAGIC_EXT(.name = "meridian", .version = "0.1");

char	   *mer_gateway_socket = NULL;
int			mer_instance_id = 0;

/*
 * A library without one of these files still loads; its owner's definition
 * takes the place of the empty one.
 */
#define MER_OPTIONAL(name) \
	extern void name(void) __attribute__((weak))

MER_OPTIONAL(mer_txn_init);
MER_OPTIONAL(mer_planner_init);
MER_OPTIONAL(mer_utility_init);
MER_OPTIONAL(mer_sequence_init);
MER_OPTIONAL(mer_catdelta_init);
MER_OPTIONAL(mer_doors_init);
MER_OPTIONAL(mer_coherence_init);

static void
define_settings(void)
{
	DefineCustomStringVariable("meridian.gateway_socket",
							   "Path of the gateway's Unix socket.",
							   NULL,
							   &mer_gateway_socket,
							   "",
							   PGC_POSTMASTER,
							   GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	DefineCustomIntVariable("meridian.instance_id",
							"Number of this instance within its cluster.",
							NULL,
							&mer_instance_id,
							0, 0, INT_MAX,
							PGC_POSTMASTER,
							0,
							NULL, NULL, NULL);
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("meridian must be loaded through shared_preload_libraries")));

	define_settings();
	mer_wire_init();
	if (mer_txn_init)
		mer_txn_init();
	if (mer_catdelta_init)
		mer_catdelta_init();
	if (mer_doors_init)
		mer_doors_init();
	if (mer_coherence_init)
		mer_coherence_init();
	if (mer_planner_init)
		mer_planner_init();
	if (mer_utility_init)
		mer_utility_init();
	if (mer_sequence_init)
		mer_sequence_init();
	MarkGUCPrefixReserved("meridian");
}
