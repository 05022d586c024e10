/*
 * isolation.c
 *	  Isolation levels: one snapshot per transaction, whatever was asked for.
 *
 * READ COMMITTED and REPEATABLE READ both run snapshot isolation at one
 * tau_start (design section 9).  Inside, PostgreSQL runs at READ COMMITTED, for
 * fresh catalog snapshots and foreign key checks without cross-check snapshots;
 * outside we report "repeatable read", which is what clients get.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/guc.h"
#include "utils/guc_tables.h"

#include "utility.h"

static bool
check_isolation(int *newval, void **extra, GucSource source)
{
	if (*newval == XACT_SERIALIZABLE)
	{
		GUC_check_errcode(ERRCODE_FEATURE_NOT_SUPPORTED);
		GUC_check_errmsg("isolation level SERIALIZABLE is not supported");
		GUC_check_errhint("Use REPEATABLE READ, and SELECT ... FOR UPDATE on the rows a decision rests on.");
		return false;
	}
	*newval = XACT_READ_COMMITTED;
	return true;
}

static const char *
show_isolation(void)
{
	return "repeatable read";
}

static void
take_over(const char *name)
{
	struct config_generic *option = find_option(name, false, false, FATAL);
	struct config_enum *isolation = (struct config_enum *) option;

	Assert(option->vartype == PGC_ENUM);
	isolation->check_hook = check_isolation;
	isolation->show_hook = show_isolation;
}

void
mer_isolation_init(void)
{
	take_over("transaction_isolation");
	take_over("default_transaction_isolation");
}
