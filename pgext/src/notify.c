/*
 * notify.c
 *	  NOTIFY among all instances.
 *
 * With one instance PostgreSQL's own queue does it all.  With several, what a
 * transaction notifies joins its write set; once that is durable the data plane
 * tells every instance, whose manager puts it into the local queue
 * (meridian.notify_here), the sender's own instance included.  Where some may
 * have been lost on the way, the sessions that listen are ended, as a lost
 * connection would have ended them.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "commands/async.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/dsm_registry.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "statistics.h"
#include "utility.h"

/* As in PostgreSQL, whose queue the payload must fit in the end. */
#define PAYLOAD_MAX_BYTES (BLCKSZ - NAMEDATALEN - 128 - 1)

#define OP_NOTIFY 9

typedef struct Note
{
	RBTNode		node;			/* must be first */
	struct Note *next;			/* in the order of the statements */
	SubTransactionId subxact;
	const char *channel;
	const char *payload;
} Note;

typedef struct Listeners
{
	int			n;
	int			pids[FLEXIBLE_ARRAY_MEMBER];	/* by process number, 0 = does not listen */
} Listeners;

static RBTree *notes;
static Note *first_note;
static Note *last_note;
static uint64 note_bytes;
static Listeners *listeners;

/* ---------- what this transaction notifies ---------- */

static int
note_compare(const RBTNode *a, const RBTNode *b, void *arg)
{
	const Note *x = (const Note *) a;
	const Note *y = (const Note *) b;
	int			order = strcmp(x->channel, y->channel);

	return order != 0 ? order : strcmp(x->payload, y->payload);
}

/* Twice the same in a transaction is once. */
static void
note_combine(RBTNode *existing, const RBTNode *newdata, void *arg)
{
}

static RBTNode *
note_alloc(void *arg)
{
	return MemoryContextAllocZero(mer_txn.cxt, sizeof(Note));
}

static void
note_free(RBTNode *node, void *arg)
{
	/* Memory goes with the transaction. */
}

static void
check_note(const char *channel, const char *payload)
{
	if (channel[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("channel name cannot be empty")));
	if (strlen(channel) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("channel name too long")));
	if (strlen(payload) > PAYLOAD_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("payload string too long")));
}

static void
add_note(const char *channel, const char *payload)
{
	Note		probe = {.channel = channel,.payload = payload};
	Note	   *note;
	bool		is_new;

	mer_txn_start();
	if (notes == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(mer_txn.cxt);

		notes = rbt_create(sizeof(Note), note_compare, note_combine, note_alloc, note_free, NULL);
		MemoryContextSwitchTo(old);
	}
	note = (Note *) rbt_insert(notes, &probe.node, &is_new);
	if (!is_new)
		return;
	note->subxact = GetCurrentSubTransactionId();
	note->channel = MemoryContextStrdup(mer_txn.cxt, channel);
	note->payload = MemoryContextStrdup(mer_txn.cxt, payload);
	note->next = NULL;
	if (last_note)
		last_note->next = note;
	else
		first_note = note;
	last_note = note;
	note_bytes += strlen(channel) + strlen(payload);
	if (note_bytes > mer_limit("txn_size_bytes"))
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many notifications in the transaction")));
}

/* False: PostgreSQL does it. */
bool
mer_notify(NotifyStmt *stmt)
{
	const char *payload = stmt->payload ? stmt->payload : "";

	if (!mer_several_instances())
		return false;
	PreventCommandIfParallelMode("NOTIFY");
	check_note(stmt->conditionname, payload);
	add_note(stmt->conditionname, payload);
	return true;
}

/* The managers of all instances learn that statistics have changed. */
void
mer_statistics_tell(void)
{
	if (mer_several_instances())
		add_note(MER_STATISTICS_CHANNEL, "");
}

PG_FUNCTION_INFO_V1(mer_pg_notify);

Datum
mer_pg_notify(PG_FUNCTION_ARGS)
{
	NotifyStmt	stmt = {.type = T_NotifyStmt};

	if (!mer_several_instances())
		return pg_notify(fcinfo);
	stmt.conditionname = PG_ARGISNULL(0) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(0));
	stmt.payload = PG_ARGISNULL(1) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(1));
	(void) mer_notify(&stmt);
	PG_RETURN_VOID();
}

bool
mer_notify_pending(void)
{
	return first_note != NULL;
}

uint64
mer_notify_size(void)
{
	return note_bytes;
}

void
mer_encode_notes(StringInfo out, void (*op_done) (void *), void *arg)
{
	for (Note *note = first_note; note; note = note->next)
	{
		mp_put_array(out, 3);
		mp_put_int(out, OP_NOTIFY);
		mp_put_bin(out, note->channel, strlen(note->channel));
		mp_put_bin(out, note->payload, strlen(note->payload));
		op_done(arg);
	}
}

void
mer_notify_reset(void)
{
	notes = NULL;
	first_note = last_note = NULL;
	note_bytes = 0;
}

static void
forget_notes_of(SubTransactionId subxact)
{
	Note	   *next;
	Note	  **link = &first_note;

	last_note = NULL;
	for (Note *note = first_note; note; note = next)
	{
		next = note->next;
		if (note->subxact == subxact)
		{
			note_bytes -= strlen(note->channel) + strlen(note->payload);
			*link = next;
			rbt_delete(notes, &note->node);
			continue;
		}
		link = &note->next;
		last_note = note;
	}
}

static void
at_subtransaction_end(SubXactEvent event, SubTransactionId mine,
					  SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		forget_notes_of(mine);
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
	{
		for (Note *note = first_note; note; note = note->next)
			if (note->subxact == mine)
				note->subxact = parent;
	}
}

/* ---------- what the instance manager calls ---------- */

static void
only_the_manager(void)
{
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only the instance manager may do this")));
}

PG_FUNCTION_INFO_V1(mer_notify_here);

/*
 * Tell the sessions of this instance.  One transaction of ours for each of
 * theirs, or two of them that notify the same would be heard once.
 */
Datum
mer_notify_here(PG_FUNCTION_ARGS)
{
	only_the_manager();
	Async_Notify(text_to_cstring(PG_GETARG_TEXT_PP(0)), text_to_cstring(PG_GETARG_TEXT_PP(1)));
	PG_RETURN_VOID();
}

static void
init_listeners(void *place)
{
	Listeners  *made = place;

	memset(made, 0, offsetof(Listeners, pids) + MaxBackends * sizeof(int));
	made->n = MaxBackends;
}

static void
attach_listeners(void)
{
	bool		found;

	if (listeners == NULL)
		listeners = GetNamedDSMSegment("meridian listeners",
									   offsetof(Listeners, pids) + MaxBackends * sizeof(int),
									   init_listeners, &found);
}

PG_FUNCTION_INFO_V1(mer_end_listeners);

/* Notifications may have been lost: who listens must notice.  Answers how many there were. */
Datum
mer_end_listeners(PG_FUNCTION_ARGS)
{
	int64		ended = 0;

	only_the_manager();
	attach_listeners();
	for (int i = 0; i < listeners->n; i++)
		if (listeners->pids[i] != 0 && kill(listeners->pids[i], SIGTERM) == 0)
			ended++;
	PG_RETURN_INT64(ended);
}

static void
set_listening(bool listening)
{
	if (listeners != NULL && MyProcNumber >= 0 && MyProcNumber < listeners->n)
		listeners->pids[MyProcNumber] = listening ? MyProcPid : 0;
}

static void
at_exit(int code, Datum arg)
{
	set_listening(false);
}

/* Whoever has once listened counts as listening: being ended is never wrong. */
void
mer_listen(void)
{
	static bool registered = false;

	attach_listeners();
	if (!registered)
		before_shmem_exit(at_exit, 0);
	registered = true;
	set_listening(true);
}

void
mer_unlisten_all(void)
{
	set_listening(false);
}

void
mer_notify_init(void)
{
	RegisterSubXactCallback(at_subtransaction_end, NULL);
}
