/*
 * commit.c
 *	  Ship the write set and learn what became of it.
 *
 * From the first byte sent to the end of the local commit no interrupt is
 * served: a cancel must not turn a commit into a failure.  An answer that does
 * not come is asked for again by transaction id; if nobody can tell, the error
 * says so (08007, XX000 in the dsql profile).
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "utils/memutils.h"

#include "coherence.h"
#include "store.h"
#include "wire.h"

#define COMMIT_TIMEOUT_MS 60000
#define STATUS_TIMEOUT_MS 10000
#define STATUS_PATIENCE_MS 30000
#define STATUS_PAUSE_US 200000

static char txid[MER_TXID_BYTES];
static bool txid_chosen = false;
static bool fail_afterwards = false;
static uint32 part_seq;
static MerReply answer;
static MerStatus status;

static void
check_size(void)
{
	uint64		size = mer_encoded_size();
	uint64		limit = mer_limit("txn_size_bytes");

	if (size > limit)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("transaction size limit " UINT64_FORMAT "mb exceeded", limit / (1024 * 1024)),
				 errdetail("Current transaction size " UINT64_FORMAT "mb > " UINT64_FORMAT "mb",
						   (size + 1024 * 1024 - 1) / (1024 * 1024), limit / (1024 * 1024))));
}

/* ---------- frames ---------- */

static void
send_part(StringInfo chunk)
{
	StringInfoData buf;

	initStringInfo(&buf);
	mer_frame_part(&buf, mer_wire_next_id(), txid, part_seq++, chunk, mer_txn.tau);
	status = mer_wire_try_send(&buf, COMMIT_TIMEOUT_MS);
	pfree(buf.data);
}

static void
send_commit(StringInfo chunk)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);	/* the answer stays */
	StringInfoData buf;
	uint32		id;

	initStringInfo(&buf);
	id = mer_wire_next_id();
	mer_frame_commit(&buf, id, txid, mer_catver(), part_seq, chunk);
	status = mer_wire_try_call(&buf, id, COMMIT_TIMEOUT_MS, &answer);
	pfree(buf.data);
	MemoryContextSwitchTo(old);
}

static void
sink(StringInfo chunk, bool last)
{
	if (status != MER_OK)
		return;
	if (last)
		send_commit(chunk);
	else
		send_part(chunk);
}

/* ---------- outcome unknown ---------- */

pg_noreturn static void
outcome_unknown(void)
{
	mer_txn.unknown = true;
	ereport(ERROR,
			(errcode(strcmp(mer_profile(), "dsql") == 0 ? ERRCODE_INTERNAL_ERROR :
					 ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
			 errmsg("the outcome of the transaction is unknown"),
			 errdetail("The connection to the gateway was lost after COMMIT was sent."),
			 errhint("Look whether the transaction's effects are there before trying again.")));
}

/* 1 committed, 2 aborted, 0 unknown or nobody to ask. */
static int
ask_status(void)
{
	StringInfoData buf;
	MerReply	reply;
	uint32		id;

	if (mer_wire_try_reconnect(STATUS_TIMEOUT_MS) != MER_OK)
		return 0;
	initStringInfo(&buf);
	id = mer_wire_next_id();
	mer_frame_status(&buf, id, txid, mer_txn.tau);
	if (mer_wire_try_call(&buf, id, STATUS_TIMEOUT_MS, &reply) != MER_OK ||
		reply.type != MER_OUTCOME)
		return 0;
	return (int) mp_get_int(&reply.body);
}

static void
resolve(void)
{
	instr_time	start,
				now;

	INSTR_TIME_SET_CURRENT(start);
	for (;;)
	{
		int			outcome = ask_status();

		if (outcome == 1)
			return;
		if (outcome == 2)
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("the transaction was aborted while its connection to the gateway was lost")));
		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_SUBTRACT(now, start);
		if (INSTR_TIME_GET_MILLISEC(now) > STATUS_PATIENCE_MS)
			outcome_unknown();
		pg_usleep(STATUS_PAUSE_US);
	}
}

static void
take_answer(void)
{
	if (status == MER_TOO_LARGE || status == MER_TOO_MANY)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the write set does not fit the gateway's frames")));
	if (status == MER_UNSENT)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("lost the connection to the gateway before COMMIT was sent"),
				 errhint("The transaction has no effect; retry it.")));
	if (status != MER_OK)
		resolve();
	else if (answer.type == MER_ERROR)
	{
		/* The gateway may say itself that it does not know. */
		if (mer_wire_sqlstate(&answer) == ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN)
			resolve();
		else
			mer_wire_raise(&answer);
	}
	else if (answer.type != MER_COMMITTED)
		outcome_unknown();
}

/* By this id the transaction commits, and before that holds a gate. */
const char *
mer_commit_txid(void)
{
	/* Drawn many at a time: each draw opens a file. */
	static char drawn[64 * MER_TXID_BYTES];
	static int	ndrawn = 0;

	if (txid_chosen)
		return txid;
	if (ndrawn == 0)
	{
		if (!pg_strong_random(drawn, sizeof(drawn)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate a transaction id")));
		ndrawn = sizeof(drawn) / MER_TXID_BYTES;
	}
	memcpy(txid, drawn + --ndrawn * MER_TXID_BYTES, MER_TXID_BYTES);
	txid_chosen = true;
	return txid;
}

void
mer_commit_reset(void)
{
	txid_chosen = false;
}

void
mer_commit(void)
{
	/* The gateway is there, or the transaction fails before anything is sent. */
	check_size();
	(void) mer_commit_txid();
	mer_txn.shipping = true;
	part_seq = 0;
	status = MER_OK;
	memset(&answer, 0, sizeof(answer));
	HOLD_INTERRUPTS();
	mer_txn.interrupts_held = true;
	(void) mer_encode(sink, MER_CHUNK_BYTES);
	take_answer();
	mer_txn.committed = true;
	if (fail_afterwards)
		elog(ERROR, "failure wanted by a test");
}

PG_FUNCTION_INFO_V1(mer_debug_fail_after_commit);

/* For tests, declared by none of our scripts: what if the local commit fails? */
Datum
mer_debug_fail_after_commit(PG_FUNCTION_ARGS)
{
	fail_afterwards = true;
	PG_RETURN_VOID();
}
