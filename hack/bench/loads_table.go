package main

import (
	"context"
	"time"
)

// load is a way to make claims, and what burdens kube-controller-manager
// meanwhile.
type load struct {
	name, what string
	claims     int
	pace       pace
	// waits makes the class WaitForFirstConsumer, and all claims before any of
	// them gets its node.
	waits bool
	// small loads stand for larger ones in CI.
	small bool
	// compared says that Berth must not be slower than kube-controller-manager
	// alone; see slower.
	compared bool
	// assistOnly says that kube-controller-manager alone says nothing here.
	assistOnly bool
	// likeWithout says that the claims are made twice, before begin and after it, and
	// that it must make no difference.
	likeWithout bool
	// conflictsExcused says that kube-controller-manager may warn of conflicts: it
	// acts on what it saw before it was away.
	conflictsExcused bool
	// restless says that kube-controller-manager never gets quiet after stage.
	restless bool

	// stage prepares the cluster, before the berth that is measured starts.
	stage func(context.Context, *scene) error
	// begin is called right before the claims are made. What it returns says why
	// the burden is not there, and is "" when it is.
	begin func(context.Context, *scene) (missing string, err error)
	// during runs beside the claims; its result is like that of begin.
	during func(context.Context, *scene) (missing string, err error)
	// arose looks afterwards whether the burden was there, in the same way.
	arose func(context.Context, *scene) (missing string, err error)
}

// every makes a claim each time the interval has passed, whether or not those before
// it are Bound.
func every(interval time.Duration) pace {
	return pace{rate: float64(time.Second) / float64(interval)}
}

// allLoads returns every load there is.
func allLoads() []load {
	fewAtATime := every(3 * time.Second)
	return []load{
		{name: "burst-600", what: "600 claims at once", claims: 600},
		{name: "rate-20", what: "600 claims, 20 a second", claims: 600, pace: pace{rate: 20}},
		{name: "rate-5", what: "150 claims, 5 a second", claims: 150, pace: pace{rate: 5}},
		{name: "rate-50", what: "600 claims, 50 a second", claims: 600, pace: pace{rate: 50}},
		{name: "one-by-one", what: "50 claims, each when the one before is Bound", claims: 50, pace: pace{oneByOne: true}},
		{name: "wait-for-consumer", what: "300 claims of a WaitForFirstConsumer class, which get their node at once", claims: 300, waits: true},

		{name: "deletions-100", what: "6 claims, one every 3 s, after the deletion of 100 has begun", claims: 6, pace: fewAtATime,
			small: true, compared: true, stage: filled(100), begin: deleting(5)},
		{name: "deletions-400", what: "10 claims, one every 3 s, after the deletion of 400 has begun", claims: 10, pace: fewAtATime,
			compared: true, stage: filled(400), begin: deleting(10)},
		{name: "deletions-1000", what: "600 claims at once, after the deletion of 1,000 has begun", claims: 600,
			compared: true, stage: filled(1000), begin: deleting(50)},
		{name: "released-100", what: "4 claims, one every 3 s, beside 100 Released volumes whose claims were made anew", claims: 4, pace: fewAtATime,
			compared: true, restless: true, stage: released(100), begin: backlog(20)},
		{name: "released-600", what: "4 claims, one every 3 s, beside 600 Released volumes whose claims were made anew", claims: 4, pace: fewAtATime,
			compared: true, restless: true, stage: released(600), begin: backlog(100)},
		{name: "released-burst", what: "200 claims at once, beside 100 Released volumes whose claims were made anew", claims: 200,
			compared: true, restless: true, stage: released(100), begin: backlog(20)},
		{name: "released-pause", what: "60 claims, 4 a second, beside 100 Released volumes whose claims were made anew, while kube-controller-manager is stopped for 8 s", claims: 60, pace: pace{rate: 4},
			assistOnly: true, conflictsExcused: true, restless: true, stage: released(100), during: stopControllerManager(2*time.Second, 8*time.Second)},
		{name: "static-2000", what: "10 claims, one every 3 s, after 2,000 static volumes were made", claims: 10, pace: fewAtATime,
			begin: makeStatic(2000)},
		{name: "stuck-volume", what: "10 claims, one every 3 s, beside a volume whose status kube-controller-manager may not write, and without it", claims: 10, pace: fewAtATime,
			likeWithout: true, stage: forbidStuck, begin: makeStuck, arose: stuckRefused},
		{name: "stuck-burst", what: "300 claims at once, beside such a volume that was just made", claims: 300,
			assistOnly: true, stage: forbidStuck, begin: makeStuck, arose: stuckRefused},
		{name: "foreign-20000", what: "50 claims, 2 a second, beside 20,000 Bound pairs of another provisioner", claims: 50, pace: pace{rate: 2},
			restless: true, stage: foreign(20_000), arose: foreignThere(20_000)},
		{name: "kcm-stopped", what: "300 claims, 100 a second, while kube-controller-manager is stopped for 60 s", claims: 300, pace: pace{rate: 100},
			assistOnly: true, conflictsExcused: true, during: stopControllerManager(time.Second, time.Minute)},
		{name: "kcm-restarted", what: "300 claims, 100 a second, while kube-controller-manager is killed and started again", claims: 300, pace: pace{rate: 100},
			assistOnly: true, conflictsExcused: true, during: restartControllerManager(time.Second, 0)},
		{name: "kcm-away", what: "400 claims, 4 a second, beside 400 Released volumes whose claims were made anew, while kube-controller-manager is killed and started again after 85 s",
			claims: 400, pace: pace{rate: 4}, assistOnly: true, conflictsExcused: true, restless: true,
			stage: released(400), during: restartControllerManager(time.Second, 85*time.Second)},
	}
}
