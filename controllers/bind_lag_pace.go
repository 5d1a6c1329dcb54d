package controllers

import "time"

// lagPace holds the constants of a volumeLag.
type lagPace struct {
	// Margin is how much younger than a volume a sign may be and still count, when
	// there was none as the volume was made.
	// It covers claims that are deleted about when the volume is made: watches of
	// volumes and of claims do not run in step.
	Margin time.Duration
	// Read is what a request costs the worker when there are many: its client
	// makes 20 a second.
	Read time.Duration
	// Resync is what a volume costs the worker at a resync that needs no
	// request, when its machine is busy with other things (a quarter of that on two
	// idle processors). All of them count for Leave at most.
	Resync time.Duration
	// Leave is the lag from which on volumes are left to kube-controller-manager,
	// which binds them when it gets there.
	Leave time.Duration
	// Stuck is for how long a sign must have stayed, after a volume that was made
	// later was read and while nothing was done about any other, to be taken for one
	// that stays for ever: the volumes of deleted claims join the worker's queue by
	// way of that of claims. NewStuck is the same for a few new volumes, which join
	// it themselves.
	Stuck, NewStuck time.Duration
	// Pause is how long kube-controller-manager may do nothing and yet be at work, and
	// Drain what it takes to read what has come meanwhile.
	Pause, Drain time.Duration
	// Silence is how long kube-controller-manager may have something to do and
	// do nothing before it is taken for dead.
	Silence time.Duration
	// Forget is the time after which half of what was learned is forgotten, and
	// MaxLearned the most that is learned.
	Forget, MaxLearned time.Duration
	// Repair is how long a claim stays Lost before Berth puts it right: longer
	// than kube-controller-manager's resync of 15 s, by which it does so itself: 20
	// s for a silence of 75 s. It doubles each time, up to MaxRepair.
	Repair, MaxRepair time.Duration
	// Look is how often all signs are looked at, at the most.
	Look time.Duration
}

// newLagPace returns the constants for a kube-controller-manager that is taken
// for dead after silence.
func newLagPace(silence time.Duration) lagPace {
	return lagPace{
		Margin:     1500 * time.Millisecond,
		Read:       55 * time.Millisecond,
		Resync:     200 * time.Microsecond,
		Leave:      10 * time.Second,
		Stuck:      30 * time.Second,
		NewStuck:   time.Second,
		Pause:      2 * time.Second,
		Drain:      200 * time.Millisecond,
		Silence:    silence,
		Forget:     2 * time.Minute,
		MaxLearned: 30 * time.Second,
		Repair:     silence * 4 / 15,
		MaxRepair:  5 * time.Minute,
		Look:       100 * time.Millisecond,
	}
}
