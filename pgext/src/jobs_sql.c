/*
 * jobs_sql.c
 *	  What SQL sees of jobs: the functions behind schema sys, and those of the
 *	  job runner (src/meridian/jobs).
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "jobs.h"

#define KEEP_FINISHED_US (INT64CONST(24) * 3600 * 1000000)
#define KEEP_FINISHED_JOBS 1000

PG_FUNCTION_INFO_V1(mer_jobs_sql);
PG_FUNCTION_INFO_V1(mer_job_step_sql);
PG_FUNCTION_INFO_V1(mer_job_fail_sql);
PG_FUNCTION_INFO_V1(mer_jobs_prune_sql);
PG_FUNCTION_INFO_V1(mer_wait_for_job);
PG_FUNCTION_INFO_V1(mer_cancel_job);

/* jobs(): all of them */
Datum
mer_jobs_sql(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	static const MerJobField texts[] = {JOB_STATUS, JOB_TYPE, JOB_DETAILS, JOB_ERROR_DETAIL,
	JOB_OBJECT_NAME, JOB_PHASE};

	InitMaterializedSRF(fcinfo, 0);
	foreach_ptr(MerJob, job, mer_job_list())
	{
		Datum		values[15];
		bool		nulls[15] = {0};
		int			n = 0;

		values[n++] = CStringGetTextDatum(job->id);
		for (int i = 0; i < (int) lengthof(texts); i++)
		{
			nulls[n] = job->field[texts[i]].len == 0;
			values[n++] = CStringGetTextDatum(job->field[texts[i]].data);
		}
		values[n++] = ObjectIdGetDatum((Oid) mer_job_int(job, JOB_CLASS_ID));
		values[n++] = ObjectIdGetDatum((Oid) mer_job_int(job, JOB_OBJECT_ID));
		values[n++] = ObjectIdGetDatum((Oid) mer_job_int(job, JOB_TABLE_ID));
		values[n++] = ObjectIdGetDatum((Oid) mer_job_int(job, JOB_OWNER));
		values[n++] = TimestampTzGetDatum(mer_job_int(job, JOB_START));
		values[n++] = TimestampTzGetDatum(mer_job_int(job, JOB_UPDATE));
		values[n++] = Int64GetDatum(mer_job_int(job, JOB_ROWS_DONE));
		values[n++] = Int64GetDatum(mer_job_int(job, JOB_ROWS_ESTIMATED));
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * job_step(id, budget, gate): one step; what comes next, how many rows it has
 * looked at, and how long that took (without waits for storage and without its commit)
 */
Datum
mer_job_step_sql(PG_FUNCTION_ARGS)
{
	char	   *id = text_to_cstring(PG_GETARG_TEXT_PP(0));
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {false, false, false};
	int64		rows;

	mer_job_check_id(id);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(mer_job_build_step(id, PG_GETARG_INT32(1), PG_GETARG_BOOL(2), &rows));
	values[1] = Int64GetDatum(rows);
	values[2] = Float8GetDatum(rows > 0 ? mer_job_work_ms() : 0.0);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* job_fail(id, sqlstate, message, detail): the next step removes what there is */
Datum
mer_job_fail_sql(PG_FUNCTION_ARGS)
{
	char	   *id = text_to_cstring(PG_GETARG_TEXT_PP(0));
	MerJob		job;

	mer_job_check_id(id);
	if (mer_job_get(id, &job) && !mer_job_finished(&job) && !mer_job_is(&job, JOB_PHASE, "fail"))
	{
		mer_job_set(&job, JOB_PHASE, "fail");
		mer_job_set(&job, JOB_SQLSTATE, text_to_cstring(PG_GETARG_TEXT_PP(1)));
		mer_job_set(&job, JOB_DETAILS, text_to_cstring(PG_GETARG_TEXT_PP(2)));
		mer_job_set(&job, JOB_ERROR_DETAIL, text_to_cstring(PG_GETARG_TEXT_PP(3)));
		mer_job_put(&job, false);
	}
	PG_RETURN_VOID();
}

static int
newest_first(const ListCell *a, const ListCell *b)
{
	int64		x = mer_job_int(lfirst(a), JOB_UPDATE);
	int64		y = mer_job_int(lfirst(b), JOB_UPDATE);

	return x > y ? -1 : x < y;
}

/* jobs_prune(): forget finished jobs that are old or too many */
Datum
mer_jobs_prune_sql(PG_FUNCTION_ARGS)
{
	List	   *jobs = mer_job_list();
	TimestampTz oldest = GetCurrentTimestamp() - KEEP_FINISHED_US;
	int			kept = 0;
	int			gone = 0;

	list_sort(jobs, newest_first);
	foreach_ptr(MerJob, job, jobs)
	{
		if (!mer_job_finished(job))
			continue;
		if (++kept <= KEEP_FINISHED_JOBS && mer_job_int(job, JOB_UPDATE) > oldest)
			continue;
		mer_job_delete(job->id);
		gone++;
	}
	PG_RETURN_INT32(gone);
}

/* Procedures cannot be strict. */
static char *
id_argument(FunctionCallInfo fcinfo)
{
	char	   *id;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("job id must not be null")));
	id = text_to_cstring(PG_GETARG_TEXT_PP(0));
	mer_job_check_id(id);
	return id;
}

Datum
mer_wait_for_job(PG_FUNCTION_ARGS)
{
	char	   *id = id_argument(fcinfo);

	mer_job_wait(id, false);
	PG_RETURN_VOID();
}

Datum
mer_cancel_job(PG_FUNCTION_ARGS)
{
	char	   *id = id_argument(fcinfo);
	MerJob		job;

	/* As of now: tau_start is taken once the tables are locked. */
	mer_job_peek_existing(id, &job);
	if (!has_privs_of_role(GetUserId(), (Oid) mer_job_int(&job, JOB_OWNER)) &&
		!object_ownercheck(RelationRelationId, (Oid) mer_job_int(&job, JOB_TABLE_ID), GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for job \"%s\"", id)));
	(void) mer_job_cancel(id);
	PG_RETURN_VOID();
}
