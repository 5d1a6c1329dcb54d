package nfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"k8s.io/utils/clock"

	"github.com/berth-storage/berth/provisioner/directory"
	"github.com/berth-storage/berth/provisioner/gate"
	"github.com/berth-storage/berth/provisioner/nfs/client"
	"github.com/berth-storage/berth/provisioner/nfs/client/nfsfs"
)

const (
	// mountPatience is how long a call on a mount may take: longer than a slow
	// disk makes it, since a silent server can't be told from one.
	mountPatience = 15 * time.Second
	// longPatience is how long a call may take on a server that answers, and
	// the reading of all markers anywhere.
	longPatience = 10 * time.Minute
	// callTimeout bounds how long a server that answers may put off a call.
	callTimeout = 15 * time.Second
	// dialTimeout bounds the finding of a share, once the server answers.
	dialTimeout = time.Minute
	// poolName is what a share's identity says it is. It can't be the name of
	// the share: the same directory may be reached by several.
	poolName = "share"
)

// shares are the shares that a driver has met.
type shares struct {
	options     Options
	connections *client.Pool
	siblings    directory.Siblings

	mu    sync.Mutex
	open  map[Share]*share
	gates map[string]*gate.Gate
	// met tells run of a new share.
	met chan struct{}
}

// share is one of them.
type share struct {
	Share
	*directory.Pool
	gate  *gate.Gate
	clock clock.Clock
	// mount is where the share is mounted, "" when it is not.
	mount  string
	remote *remote
}

func newShares(o Options) *shares {
	return &shares{
		options:     o,
		connections: client.NewPool(client.PoolOptions{AnswerTimeout: o.AnswerTimeout}),
		open:        map[Share]*share{},
		gates:       map[string]*gate.Gate{},
		met:         make(chan struct{}, 1),
	}
}

// get returns the share that s describes. It does not talk to the server.
func (all *shares) get(s Share) (*share, error) {
	all.mu.Lock()
	defer all.mu.Unlock()
	mount := all.options.Mounts[Share{Server: s.Server, Path: s.Path}]
	if mount != "" {
		s = Share{Server: s.Server, Path: s.Path} // how to reach it is the mount's business
	}
	if known, ok := all.open[s]; ok {
		return known, nil
	}
	opened := &share{Share: s, mount: mount, gate: all.gateLocked(s, mount), clock: all.options.Clock}
	filesystem, err := all.filesystem(opened)
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", s, err)
	}
	opened.Pool = directory.NewPool(filesystem, directory.Options{
		Name:             poolName,
		Driver:           Name,
		Cluster:          all.options.Cluster,
		Siblings:         &all.siblings,
		Recheck:          recheck(mount),
		PurgeRate:        all.options.PurgeRate,
		RefuseInitialise: func(ctx context.Context) error { return all.refuseInitialise(ctx, s) },
		Log:              all.options.Log.WithValues("share", s.String()),
	})
	all.open[s] = opened
	select {
	case all.met <- struct{}{}:
	default: // it is told already
	}
	return opened, nil
}

// recheck is how long a share that was looked at is taken for the same. What is
// mounted at a path may be another thing the next moment; a handle may not.
func recheck(mount string) time.Duration {
	if mount != "" {
		return 0
	}
	return time.Second
}

// gateLocked returns the gate of a server, or of a mount: what is mounted may
// answer when the server does not answer us, and the other way round.
func (all *shares) gateLocked(s Share, mount string) *gate.Gate {
	key := s.address()
	if mount != "" {
		key = mount
	}
	if all.gates[key] == nil {
		all.gates[key] = gate.New(all.options.Clock, gatePlaces)
	}
	return all.gates[key]
}

// servers returns the gates by server, or by mount.
func (all *shares) servers() map[string]*gate.Gate {
	all.mu.Lock()
	defer all.mu.Unlock()
	return maps.Clone(all.gates)
}

func (all *shares) filesystem(s *share) (directory.Filesystem, error) {
	if s.mount != "" {
		return directory.NewLocal(s.mount, directory.LocalOptions{RequireMount: true})
	}
	s.remote = &remote{share: s.Share, options: all.options, connections: all.connections}
	return s.remote, nil
}

// refuseInitialise keeps an empty export from becoming a new pool where there
// was one.
func (all *shares) refuseInitialise(ctx context.Context, s Share) error {
	if all.options.Volumes == nil {
		return nil
	}
	volumes, err := all.options.Volumes(ctx)
	if err != nil {
		return fmt.Errorf("whether %s has volumes is unknown: %w", s, err)
	}
	for _, v := range volumes {
		rel, ok := v.Share.below(s)
		switch {
		case !ok:
		case rel == "":
			return fmt.Errorf("but Kubernetes has volumes on %s: is the right directory exported?", s)
		case within(rel, v.Path):
			return fmt.Errorf("it is, or lies in, a volume on %s", v.Share)
		}
	}
	return nil
}

// call calls f for the share, through the gate of its server. Errors name the
// share.
func call[T any](ctx context.Context, s *share, f func(context.Context) (T, error)) (T, error) {
	patience := longPatience
	if s.mount != "" {
		patience = mountPatience
	}
	return callFor(ctx, s, patience, f)
}

func callFor[T any](ctx context.Context, s *share, patience time.Duration, f func(context.Context) (T, error)) (T, error) {
	value, err := through(ctx, s.gate, s.clock, patience, func() error { return s.silent(patience) }, f)
	if err != nil {
		err = fmt.Errorf("share %s: %w", s.Share, err)
	}
	return value, err
}

// do is call for an f without a value.
func (s *share) do(ctx context.Context, f func(context.Context) error) error {
	_, err := call(ctx, s, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// silent is the error for a call that can't be called off.
func (s *share) silent(patience time.Duration) error {
	where := "server " + s.address()
	if s.mount != "" {
		where = fmt.Sprintf("the mount of %s at %s", s.Share, s.mount)
	}
	return &silence{fmt.Sprintf("%s did not answer within %s", where, patience)}
}

// silence is an error that says that a server does not answer.
type silence struct{ text string }

func (e *silence) Error() string { return e.text }
func (e *silence) Unwrap() error { return client.ErrUnreachable }

// all returns the shares that were met, sorted.
func (all *shares) all() []*share {
	all.mu.Lock()
	defer all.mu.Unlock()
	list := make([]*share, 0, len(all.open))
	for _, s := range all.open {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *share) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// run empties the trash of all shares, also of those met later, until ctx ends.
func (all *shares) run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	served := map[*share]bool{}
	for {
		for _, s := range all.all() {
			if served[s] {
				continue
			}
			served[s] = true
			workers.Go(func() {
				if err := s.Run(ctx); err != nil {
					all.options.Log.Error(err, "Empty the trash", "share", s.String())
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-all.met:
		}
	}
}

func (all *shares) close() error {
	var failed []error
	for _, s := range all.all() {
		failed = append(failed, s.Close())
		if s.remote != nil {
			failed = append(failed, s.remote.close())
		}
	}
	all.connections.Close()
	return errors.Join(failed...)
}

// remote is a share that is reached by speaking NFS, once it is needed.
type remote struct {
	share       Share
	options     Options
	connections *client.Pool

	dialing singleflight.Group
	mu      sync.Mutex
	client  *client.Client
}

// Root implements directory.Filesystem.
func (r *remote) Root(ctx context.Context) (directory.Dir, error) {
	c, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	return nfsfs.New(c).Root(ctx)
}

// Space implements directory.Filesystem.
func (r *remote) Space(ctx context.Context) (directory.Space, error) {
	c, err := r.dial(ctx)
	if err != nil {
		return directory.Space{}, err
	}
	return nfsfs.New(c).Space(ctx)
}

// dial connects to the server, the first time it succeeds. Callers that come
// meanwhile share the outcome.
func (r *remote) dial(ctx context.Context) (*client.Client, error) {
	r.mu.Lock()
	known := r.client
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	result := r.dialing.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTimeout)
		defer cancel()
		return r.dialAny(ctx)
	})
	select {
	case done := <-result:
		if done.Err != nil {
			return nil, done.Err
		}
		return done.Val.(*client.Client), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dialAny tries the versions that will do, the newest first.
func (r *remote) dialAny(ctx context.Context) (*client.Client, error) {
	var failed []error
	for _, version := range versions(r.share.Version) {
		c, err := client.Dial(ctx, client.Options{
			Server:    r.share.Server,
			Port:      r.share.Port,
			MountPort: r.share.MountPort,
			Share:     r.share.Path,
			Version:   version,
			Timeout:   callTimeout,
			Pool:      r.connections,
		})
		if err == nil {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.client = c
			return c, nil
		}
		failed = append(failed, err)
		if errors.Is(err, client.ErrUnreachable) {
			break
		}
	}
	return nil, errors.Join(failed...)
}

func versions(wish string) []client.Version {
	switch wish {
	case "":
		return []client.Version{client.VersionAuto}
	case versionAny4:
		return []client.Version{client.Version41, client.Version40}
	}
	return []client.Version{client.Version(wish)}
}

func (r *remote) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client == nil {
		return nil
	}
	return r.client.Close()
}
