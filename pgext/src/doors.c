/*
 * doors.c
 *	  An instance lets clients in only once its catalog is up to date.
 *
 * The instance manager starts the server with meridian.open = off, brings the
 * catalog up to date over the private socket, and then turns the setting on.
 * Until then a client is told that the server is starting up, which drivers
 * know to try again on.
 */
#include "meridian.h"

#include "libpq/auth.h"
#include "libpq/libpq-be.h"
#include "utils/guc.h"

extern void mer_doors_init(void);

static bool is_open = true;
static ClientAuthentication_hook_type next_authentication = NULL;

/* Whoever comes through the private socket is the instance manager. */
static void
keep_out(Port *port, int status)
{
	if (!is_open && port->raddr.addr.ss_family != AF_UNIX)
		ereport(FATAL,
				(errcode(ERRCODE_CANNOT_CONNECT_NOW),
				 errmsg("the database system is starting up"),
				 errdetail("The catalog of this instance is being brought up to date.")));
	if (next_authentication)
		next_authentication(port, status);
}

void
mer_doors_init(void)
{
	DefineCustomBoolVariable("meridian.open",
							 "Are clients let in?",
							 "Written by the instance manager.",
							 &is_open, true, PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	next_authentication = ClientAuthentication_hook;
	ClientAuthentication_hook = keep_out;
}
