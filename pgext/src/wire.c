/*
 * wire.c
 *	  The connection of this backend to its gateway: sockets, latches,
 *	  interrupts and errors around proto.c.
 *
 * The socket is opened at first use and stays.  A socket that is lost inside a
 * transaction fails that transaction (08006): what was read belongs to a
 * tau_start that the next connection does not know of.  The next transaction
 * connects again.
 */
#include "wire.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "access/xact.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "storage/waiteventset.h"
#include "utils/memutils.h"
#include "utils/wait_event.h"

#define CONNECT_TIMEOUT_MS 10000
#define CONNECT_TRIES 200
#define CONNECT_PAUSE_US 10000
typedef struct MerSocket
{
	pgsocket	fd;
	WaitEventSet *set;
	int			fd_pos;			/* of the socket in set */
	int			events;			/* what set waits for on it */
	bool		serve_interrupts;
	bool		used;			/* this transaction has sent something */
	bool		lost;			/* this transaction has lost its socket */
	bool		pinned;			/* the session ends with its socket */
	uint32		number;			/* of the connection: how many there were */
	uint32		pinned_number;
} MerSocket;

static MerSocket sock = {.fd = PGINVALID_SOCKET};
static MerProto *proto = NULL;
static MemoryContext wire_context = NULL;
static uint32 wait_event = 0;
/* The counters live with EXPLAIN; a library without it still counts somewhere. */
extern MerCounters mer_counters __attribute__((weak));

/* So does a library without coherence.c. */
extern void mer_stale_note(StringInfo request) __attribute__((weak));
extern bool mer_stale_retry(MerReply *reply, uint32 *id) __attribute__((weak));

/* ---------- what proto.c asks of the server ---------- */

static int64
op_now_ms(void *arg)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MILLISEC(now);
}

static void
op_close(void *arg)
{
	if (sock.set != NULL)
		FreeWaitEventSet(sock.set);
	sock.set = NULL;
	if (sock.fd != PGINVALID_SOCKET)
	{
		closesocket(sock.fd);
		ReleaseExternalFD();
	}
	sock.fd = PGINVALID_SOCKET;
}

static bool
make_wait_set(void)
{
	sock.set = CreateWaitEventSet(NULL, 3);
	sock.events = WL_SOCKET_READABLE;
	sock.fd_pos = AddWaitEventToSet(sock.set, sock.events, sock.fd, NULL, NULL);
	AddWaitEventToSet(sock.set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(sock.set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	return true;
}

/*
 * A Unix socket connects at once, unless the listener's backlog is full: after
 * a restart of the gateway all backends come together.
 */
static bool
connect_patiently(const struct sockaddr_un *address)
{
	int			tries;

	for (tries = 0; tries < CONNECT_TRIES; tries++)
	{
		if (connect(sock.fd, (const struct sockaddr *) address, sizeof(*address)) == 0)
			return true;
		if (errno != EAGAIN && errno != EINTR)
			return false;
		if (sock.serve_interrupts)
			CHECK_FOR_INTERRUPTS();
		pg_usleep(CONNECT_PAUSE_US);
	}
	return false;
}

static bool
op_connect(void *arg)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (mer_gateway_socket == NULL || mer_gateway_socket[0] == '\0' ||
		strlen(mer_gateway_socket) >= sizeof(address.sun_path))
		return false;
	strlcpy(address.sun_path, mer_gateway_socket, sizeof(address.sun_path));
	op_close(NULL);				/* of an attempt that an error ended */
	if (!AcquireExternalFD())
		return false;
	sock.fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (sock.fd == PGINVALID_SOCKET)
	{
		ReleaseExternalFD();
		return false;
	}
	if (fcntl(sock.fd, F_SETFD, FD_CLOEXEC) != 0 ||
		!pg_set_noblock(sock.fd) ||
		!connect_patiently(&address))
	{
		op_close(NULL);
		return false;
	}
	return make_wait_set();
}

static int64
op_send(void *arg, const char *data, size_t len)
{
	ssize_t		n;

	do
		n = send(sock.fd, data, len, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return n;
	return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS ? 0 : -1;
}

static int64
op_recv(void *arg, char *data, size_t len)
{
	ssize_t		n;

	do
		n = recv(sock.fd, data, len, 0);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		return n;
	if (n == 0)
		return -1;
	return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
}

static int
op_wait(void *arg, int events, int64 timeout_ms)
{
	int			wanted = 0;
	WaitEvent	event[3];
	int			n;
	int			ready = 0;

	if (sock.serve_interrupts)
		CHECK_FOR_INTERRUPTS();
	if (events & MER_IO_READ)
		wanted |= WL_SOCKET_READABLE;
	if (events & MER_IO_WRITE)
		wanted |= WL_SOCKET_WRITEABLE;
	if (wanted != sock.events)
	{
		ModifyWaitEvent(sock.set, sock.fd_pos, wanted, NULL);
		sock.events = wanted;
	}
	n = WaitEventSetWait(sock.set, timeout_ms < 0 ? -1 : (long) timeout_ms,
						 event, lengthof(event), wait_event);
	while (n-- > 0)
	{
		if (event[n].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			if (sock.serve_interrupts)
				CHECK_FOR_INTERRUPTS();
		}
		if (event[n].events & WL_SOCKET_READABLE)
			ready |= MER_IO_READ;
		if (event[n].events & WL_SOCKET_WRITEABLE)
			ready |= MER_IO_WRITE;
	}
	return ready;
}

static void *
op_alloc(void *arg, size_t len)
{
	return palloc(len);
}

static void *
op_keep(void *arg, size_t len)
{
	return MemoryContextAlloc(wire_context, len);
}

static void
op_release(void *arg, void *chunk)
{
	pfree(chunk);
}

static const MerProtoOps wire_ops = {
	.connect = op_connect,
	.close = op_close,
	.send = op_send,
	.recv = op_recv,
	.wait = op_wait,
	.now_ms = op_now_ms,
	.alloc = op_alloc,
	.keep = op_keep,
	.release = op_release,
};

void
mp_malformed(const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("malformed data from the gateway: %s", why)));
}

/* ---------- connecting ---------- */

static void
take_answer(MerReply *reply, const MerAnswer *answer)
{
	reply->type = answer->type;
	reply->body = answer->rest;
	reply->frame = answer->body;
	if (&mer_counters != NULL)
	{
		mer_counters.round_trips++;
		mer_counters.bytes += answer->len;
	}
}

static MerStatus
greet(int64 deadline_ms, MerReply *reply)
{
	StringInfoData buf;
	uint32		id = mer_proto_next_id(proto);
	MerAnswer	answer;
	MerStatus	status;

	initStringInfo(&buf);
	mer_proto_begin(&buf, MER_HELLO, id, 5);
	mp_put_int(&buf, MER_PROTOCOL_VERSION);
	mp_put_int(&buf, MyProcPid);
	mp_put_int(&buf, mer_instance_id);
	status = mer_proto_send(proto, &buf, deadline_ms);
	if (status == MER_OK)
		status = mer_proto_wait(proto, id, deadline_ms, &answer);
	pfree(buf.data);
	if (status == MER_OK)
		take_answer(reply, &answer);
	return status;
}

static void
ensure_proto(void)
{
	if (proto != NULL)
		return;
	wire_context = AllocSetContextCreate(TopMemoryContext, "Meridian wire",
										 ALLOCSET_DEFAULT_SIZES);
	proto = MemoryContextAlloc(wire_context, sizeof(MerProto));
	mer_proto_init(proto, &wire_ops, NULL);
	wait_event = WaitEventExtensionNew("MeridianGateway");
}

/* Connect and greet.  An ERROR answer is returned; a malformed WELCOME is thrown. */
static MerStatus
connect_and_greet(int timeout_ms, MerReply *reply)
{
	int64		deadline_ms = op_now_ms(NULL) + timeout_ms;
	MerStatus	status;

	mer_proto_close(proto);
	status = mer_proto_connect(proto);
	if (status != MER_OK)
		return status;

	/* Left by an error before the end, the socket is half greeted: close it. */
	PG_TRY();
	{
		status = greet(deadline_ms, reply);
		if (status == MER_OK && reply->type == MER_WELCOME)
		{
			mer_welcome_read(&reply->body);
			sock.number++;
		}
		else
			mer_proto_close(proto);
	}
	PG_CATCH();
	{
		mer_proto_close(proto);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return status;
}

pg_noreturn static void
raise_status(MerStatus status)
{
	const char *why = proto->why;

	if (status == MER_TOO_LARGE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a request exceeds %d bytes", MER_FRAME_SIZE_BYTES)));
	if (status == MER_TOO_MANY)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("more than %d requests to the gateway are under way", MER_PENDING_MAX)));
	if (status == MER_VIOLATION)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the gateway's answer is malformed")));
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("lost the connection to the gateway"),
			 why != NULL ? errdetail_internal("%s", why) : 0,
			 errhint("Retry the transaction.")));
}

static void
connect_now(void)
{
	MerReply	reply;
	MerStatus	status;

	sock.serve_interrupts = true;
	status = connect_and_greet(CONNECT_TIMEOUT_MS, &reply);
	if (status != MER_OK)
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("cannot reach the gateway at \"%s\"",
						mer_gateway_socket ? mer_gateway_socket : "")));
	if (reply.type == MER_ERROR)
		mer_wire_raise(&reply);
	if (!proto->connected)
		raise_status(MER_VIOLATION);
	pfree(reply.frame);
}

static bool
pin_lost(void)
{
	return sock.pinned && (proto == NULL || !proto->connected || sock.number != sock.pinned_number);
}

pg_noreturn static void
raise_pin_lost(void)
{
	sock.pinned = false;
	ereport(FATAL,
			(errcode(ERRCODE_ADMIN_SHUTDOWN),
			 errmsg("terminating connection because its advisory locks were lost"),
			 errdetail("The connection to the gateway ended; other sessions may hold the locks now."),
			 errhint("Connect again and take the locks again.")));
}

/* Be connected.  A transaction that has used a socket cannot go on with another. */
void
mer_wire_ensure(void)
{
	ensure_proto();
	if (pin_lost())
		raise_pin_lost();
	if (sock.used)
	{
		if (!proto->connected)
			sock.lost = true;
		if (sock.lost)
			raise_status(MER_LOST);
		return;
	}
	if (!proto->connected)
		connect_now();
}

/* ---------- for readers ---------- */

uint32
mer_wire_next_id(void)
{
	ensure_proto();
	return mer_proto_next_id(proto);
}

uint32
mer_wire_begin(StringInfo buf, int type, int n_fields)
{
	uint32		id = mer_wire_next_id();

	mer_proto_begin(buf, type, id, n_fields);
	return id;
}

static void
raise_refused(void)
{
	MerAnswer	answer;
	MerReply	reply;

	if (!mer_proto_refused(proto, &answer))
		return;
	take_answer(&reply, &answer);
	if (reply.type == MER_ERROR)
		mer_wire_raise(&reply);
	pfree(reply.frame);
}

/*
 * A socket that ended while nothing was under way refuses a transaction's
 * first request and is replaced; that costs no look at it beforehand.
 */
void
mer_wire_send(StringInfo buf)
{
	bool		first = !sock.used;
	MerStatus	status;

	mer_wire_ensure();
	sock.used = true;
	if (!first)
		raise_refused();
	sock.serve_interrupts = true;
	if (mer_stale_note != NULL)
		mer_stale_note(buf);
	status = mer_proto_send(proto, buf, MER_NO_DEADLINE);
	if (status == MER_LOST && first)
	{
		if (pin_lost())
			raise_pin_lost();
		connect_now();
		status = mer_proto_send(proto, buf, MER_NO_DEADLINE);
	}
	if (status != MER_OK)
		raise_status(status);
}

/* Nobody will wait for this answer. */
void
mer_wire_forget(uint32 id)
{
	if (proto != NULL)
		mer_proto_forget(proto, id);
}

static MerReply
wait_for_answer(uint32 id)
{
	MerAnswer	answer;
	MerReply	reply;
	MerStatus	status;

	mer_wire_ensure();
	sock.serve_interrupts = true;
	PG_TRY();
	{
		status = mer_proto_wait(proto, id, MER_NO_DEADLINE, &answer);
	}
	PG_CATCH();
	{
		mer_proto_forget(proto, id);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (status != MER_OK)
		raise_status(status);
	take_answer(&reply, &answer);
	return reply;
}

instr_time	mer_wire_waited;

MerReply
mer_wire_wait(uint32 id)
{
	instr_time	began,
				now;

	INSTR_TIME_SET_CURRENT(began);
	for (;;)
	{
		MerReply	reply = wait_for_answer(id);

		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_ACCUM_DIFF(mer_wire_waited, now, began);
		began = now;
		if (reply.type != MER_ERROR)
			return reply;
		if (mer_stale_retry == NULL || !mer_stale_retry(&reply, &id))
			mer_wire_raise(&reply);
	}
}

MerReply
mer_wire_call(StringInfo buf, uint32 id)
{
	mer_wire_send(buf);
	return mer_wire_wait(id);
}

/* ---------- for what the gateway keeps for this session ---------- */

static int64
deadline(int timeout_ms)
{
	return timeout_ms < 0 ? MER_NO_DEADLINE : op_now_ms(NULL) + timeout_ms;
}

#define SETTLE_TIMEOUT_MS 10000

MerReply
mer_wire_wait_settled(uint32 id, const MerSettle *settle)
{
	MerAnswer	answer;
	MerReply	reply;
	MerStatus	status;
	bool		timed = settle->meanwhile != NULL;

	mer_wire_ensure();
	PG_TRY();
	{
		for (;;)
		{
			sock.serve_interrupts = true;
			status = mer_proto_wait(proto, id, timed ? deadline(settle->each_ms) : MER_NO_DEADLINE,
									&answer);
			if (status != MER_TIMEOUT)
				break;
			settle->meanwhile();
		}
	}
	PG_CATCH();
	{
		mer_proto_cancel(proto, id);
		if (mer_wire_try_wait(id, SETTLE_TIMEOUT_MS, &reply) == MER_OK)
			settle->late(&reply, settle->arg);
		else
			mer_wire_drop();
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (status != MER_OK)
		raise_status(status);
	take_answer(&reply, &answer);
	if (reply.type == MER_ERROR)
		mer_wire_raise(&reply);
	return reply;
}

void
mer_wire_pin(bool pin)
{
	sock.pinned = pin;
	sock.pinned_number = sock.number;
}

/* Also where the gateway ended the connection while nobody looked. */
void
mer_wire_check_pin(void)
{
	if (sock.pinned && proto != NULL)
		(void) mer_proto_alive(proto);
	if (pin_lost())
		raise_pin_lost();
}

void
mer_wire_drop(void)
{
	if (proto != NULL)
		mer_proto_close(proto);
}

/* ---------- for COMMIT ---------- */

MerStatus
mer_wire_try_send(StringInfo buf, int timeout_ms)
{
	bool		first = !sock.used;
	MerStatus	status;

	ensure_proto();
	sock.used = true;
	sock.serve_interrupts = false;
	if (pin_lost())
		return MER_UNSENT;
	status = mer_proto_send(proto, buf, deadline(timeout_ms));
	if (status == MER_LOST && first && !sock.pinned)
	{
		status = mer_wire_try_reconnect(CONNECT_TIMEOUT_MS);
		if (status == MER_OK)
			status = mer_proto_send(proto, buf, deadline(timeout_ms));
	}
	return status == MER_LOST || status == MER_TIMEOUT ? MER_UNSENT : status;
}

MerStatus
mer_wire_try_wait(uint32 id, int timeout_ms, MerReply *reply)
{
	MerAnswer	answer;
	MerStatus	status;

	if (proto == NULL || !proto->connected)
		return MER_LOST;
	sock.serve_interrupts = false;
	status = mer_proto_wait(proto, id, deadline(timeout_ms), &answer);
	if (status == MER_OK)
		take_answer(reply, &answer);
	return status;
}

MerStatus
mer_wire_try_call(StringInfo buf, uint32 id, int timeout_ms, MerReply *reply)
{
	MerStatus	status = mer_wire_try_send(buf, timeout_ms);

	return status == MER_OK ? mer_wire_try_wait(id, timeout_ms, reply) : status;
}

MerStatus
mer_wire_try_reconnect(int timeout_ms)
{
	MemoryContext context = CurrentMemoryContext;
	MerReply	reply;
	volatile MerStatus status;

	ensure_proto();
	sock.serve_interrupts = false;
	sock.used = true;
	PG_TRY();
	{
		status = connect_and_greet(timeout_ms, &reply);
	}
	PG_CATCH();
	{
		/* A malformed WELCOME: the caller decides what no answer means. */
		MemoryContextSwitchTo(context);
		FlushErrorState();
		status = MER_VIOLATION;
	}
	PG_END_TRY();
	if (status != MER_OK)
		return status;
	pfree(reply.frame);
	return proto->connected ? MER_OK : MER_LOST;
}

/* ---------- its state ---------- */

bool
mer_wire_connected(void)
{
	return proto != NULL && proto->connected;
}

/* What a transaction has not waited for concerns nobody after its end. */
static void
at_transaction_end(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
		event != XACT_EVENT_PREPARE)
		return;
	sock.used = false;
	sock.lost = false;
	if (proto != NULL)
		mer_proto_forget_all(proto);
}

void
mer_wire_init(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
}
