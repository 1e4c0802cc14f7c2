"""Measures a server of any make over HTTP: sweep files, load, metrics, verdicts, store, accuracy, report.

    spec/     what a sweep file may say, and where in it an error is
    plan/     one pure expansion of a sweep into points with fingerprints; InferenceX in and out
    load/     prompts, schedules, the HTTP and event-stream client, client processes
    measure/  pure functions from the log of a run to metrics, intervals and verdicts
    launch/   a server as a child process, from free port to teardown
    evals/    is the answer right, at the load the speed was measured at

Never imports the engine or the server: what it knows about them came over a socket.
"""
