/*
 * sendaway.c
 *	  A session that is idle in its transaction gives up what a schema change
 *	  of another instance needs, and keeps its connection.
 *
 * PostgreSQL knows no such thing: whoever is to be interrupted while it waits
 * for its client loses the connection, for an error cannot be told then.  So the
 * transaction is rolled back here and now, with all its subtransactions, and a
 * failed transaction block takes its place; the error is told at the next
 * statement.  That may be COMMIT, which in a failed block would only say
 * ROLLBACK: it gets the error too.
 *
 * The session is woken by the interrupt with which PostgreSQL asks backends to
 * read invalidations, and finds the request when it reads one.
 */
#include "coherence.h"

#include "access/xact.h"
#include "libpq/libpq.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/proc.h"
#include "storage/procsignal.h"
#include "storage/shmem.h"
#include "storage/sinval.h"
#include "utils/backend_status.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/ps_status.h"

#include "state.h"

/* By process number: the local id of the transaction that is to end; 0: none. */
static pg_atomic_uint32 *asked = NULL;
static bool leaving = false;
static bool sent_away = false;	/* and nobody has told the client */
static emit_log_hook_type next_emit_log = NULL;

Size
mer_sendaway_size(void)
{
	return MAXALIGN(sizeof(pg_atomic_uint32) * MaxBackends);
}

void
mer_sendaway_startup(void)
{
	bool		found;

	asked = ShmemInitStruct("meridian sendaway", mer_sendaway_size(), &found);
	for (int i = 0; i < MaxBackends && !found; i++)
		pg_atomic_init_u32(&asked[i], 0);
}

/* ---------- who asks ---------- */

static bool
is_idle_in_transaction(ProcNumber number)
{
	PgBackendStatus *status;

	pgstat_clear_backend_activity_snapshot();
	status = pgstat_get_beentry_by_proc_number(number);
	return status != NULL && status->st_state == STATE_IDLEINTRANSACTION;
}

bool
mer_ask_to_leave(VirtualTransactionId vxid)
{
	SharedInvalidationMessage message = {0};
	PGPROC	   *proc;

	if (asked == NULL || vxid.procNumber < 0 || vxid.procNumber >= MaxBackends ||
		!is_idle_in_transaction(vxid.procNumber))
		return false;
	proc = GetPGProcByNumber(vxid.procNumber);
	pg_atomic_write_u32(&asked[vxid.procNumber], vxid.localTransactionId);

	/* Any relation will do: this one is small, and its invalidation is known to do no harm. */
	message.rc.id = SHAREDINVALRELCACHE_ID;
	message.rc.dbId = MyDatabaseId;
	message.rc.relId = mer_state_table();
	SendSharedInvalidMessages(&message, 1);
	return SendProcSignal(proc->pid, PROCSIG_CATCHUP_INTERRUPT, vxid.procNumber) == 0;
}

/* ---------- who leaves ---------- */

/* Nothing of the transaction is in use: the session waits for its client's next message. */
static bool
waits_for_client(void)
{
	return MyProcPort != NULL && pq_is_reading_msg() && MyBEEntry != NULL &&
		MyBEEntry->st_state == STATE_IDLEINTRANSACTION &&
		InterruptHoldoffCount == 0 && CritSectionCount == 0;
}

static void
leave(void)
{
	MemoryContext old = CurrentMemoryContext;

	leaving = true;
	AbortOutOfAnyTransaction();
	StartTransactionCommand();
	BeginTransactionBlock();
	CommitTransactionCommand();
	AbortCurrentTransaction();
	MemoryContextSwitchTo(old);
	sent_away = true;
	leaving = false;
	pgstat_report_activity(STATE_IDLEINTRANSACTION_ABORTED, NULL);
	set_ps_display("idle in transaction (aborted)");
}

static void
at_invalidation(Datum arg, Oid relid)
{
	uint32		wanted;

	if (leaving || asked == NULL || MyProcNumber < 0 || MyProcNumber >= MaxBackends)
		return;
	wanted = pg_atomic_read_u32(&asked[MyProcNumber]);
	if (wanted == 0)
		return;
	if (wanted == MyProc->vxid.lxid && !waits_for_client())
		return;
	pg_atomic_write_u32(&asked[MyProcNumber], 0);
	if (wanted == MyProc->vxid.lxid)
		leave();
}

/* ---------- what the client hears ---------- */

void
mer_sent_away_check(const TransactionStmt *stmt)
{
	if (!sent_away || !IsAbortedTransactionBlockState())
		return;
	sent_away = false;
	if (stmt->kind == TRANS_STMT_ROLLBACK)
		return;
	/* As when COMMIT itself fails, the block ends. */
	if (stmt->kind == TRANS_STMT_COMMIT)
		UserAbortTransactionBlock(false);
	mer_schema_changed();
}

static void
reword(ErrorData *error)
{
	if (sent_away && error->elevel >= ERROR && error->sqlerrcode == ERRCODE_IN_FAILED_SQL_TRANSACTION)
	{
		sent_away = false;
		error->sqlerrcode = ERRCODE_T_R_SERIALIZATION_FAILURE;
		error->message = pstrdup(MER_OC001);
		error->detail = pstrdup("The session was using what a schema change concerns.");
		error->hint = pstrdup("Retry the transaction.");
	}
	if (next_emit_log != NULL)
		next_emit_log(error);
}

static void
at_xact(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT)
		sent_away = false;
}

void
mer_sendaway_init(void)
{
	CacheRegisterRelcacheCallback(at_invalidation, (Datum) 0);
	RegisterXactCallback(at_xact, NULL);
	next_emit_log = emit_log_hook;
	emit_log_hook = reword;
}
