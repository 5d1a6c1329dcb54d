package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
)

// DefaultPurgeRate is how many files a second a pool removes from its trash.
const DefaultPurgeRate = 10_000

// Options configure a Pool.
type Options struct {
	// Name and Driver are written into a pool when it is initialised, and must
	// agree with what is there ever after.
	Name, Driver string
	// RefuseInitialise is asked before a base that was never used is
	// initialised, and refuses by returning an error that says why. It is not
	// asked when an administrator has made the directory .berth.
	RefuseInitialise func(ctx context.Context) error
	// Cluster, when set, returns an id of the Kubernetes cluster, which is
	// written into the pool too: two clusters that share one base could not see
	// each other's volumes, and would take them for orphans.
	Cluster func(ctx context.Context) (string, error)
	// Siblings, when set, is shared with the other pools of this process whose
	// bases may turn out to be the same directory.
	Siblings *Siblings
	// Recheck is how long what an operation found at the base serves others that
	// begin meanwhile; zero means that each looks for itself. It is for
	// filesystems whose directories can't be replaced under those who have them
	// open, as on a server whose handles go stale then, and saves them round
	// trips.
	Recheck time.Duration
	// CloseBase takes from others than the base's owner and group what they may do
	// in it, when the pool is opened and the base holds nothing but the pool's. It
	// is for a disk of this machine, where root leads pods to their volumes.
	CloseBase bool
	// Quota limits how much volumes may hold. When nil, none is limited.
	Quota Quota
	// PurgeRate limits how many files a second are removed from the trash;
	// zero means DefaultPurgeRate.
	PurgeRate rate.Limit
	Log       logr.Logger
}

// Pool keeps volumes below one base. Its methods may be called by several
// goroutines at once; calls for one volume wait for each other.
type Pool struct {
	fs      Filesystem
	options Options
	log     logr.Logger
	limiter *rate.Limiter

	opening keyedLock
	opened  atomic.Pointer[opened]
	visits  visits
	volumes keyedLock
	wake    chan struct{}
}

// opened is what a Pool learns when it first uses its base.
type opened struct {
	identity identity
	lock     io.Closer
	index    *index
	plain    plainParents
}

// NewPool returns the pool whose base is the root of fs. The base is not looked
// at before it is needed.
func NewPool(fs Filesystem, options Options) *Pool {
	p := &Pool{
		fs:      fs,
		options: options,
		log:     options.Log,
		wake:    make(chan struct{}, 1),
	}
	limit := options.PurgeRate
	if limit == 0 {
		limit = DefaultPurgeRate
	}
	p.limiter = rate.NewLimiter(limit, max(1, int(min(limit, DefaultPurgeRate))/10))
	return p
}

// Close releases the base to other processes. The pool must not be in use.
func (p *Pool) Close() error {
	p.visits.replace(nil)
	state := p.opened.Swap(nil)
	if state == nil {
		return nil
	}
	return state.lock.Close()
}

// Space reports the size of the filesystem that holds the pool. It does not
// need the pool to be initialised.
func (p *Pool) Space(ctx context.Context) (Space, error) { return p.fs.Space(ctx) }

// Stats are what a pool's metrics show.
type Stats struct {
	// Volumes counts the markers, Damaged those that can't be read.
	Volumes, Damaged int
	// Trash counts what waits to be purged. One deleted volume may count more
	// than once while it is.
	Trash int
	// OpenBase says that others than the base's owner and group may do something
	// in it. It is known only when Options.CloseBase wants it otherwise.
	OpenBase bool
}

// Stats counts what the pool holds.
func (p *Pool) Stats(ctx context.Context) (Stats, error) {
	s, err := p.enter(ctx, false)
	if errors.Is(err, ErrNotInitialised) {
		return Stats{}, nil
	}
	if err != nil {
		return Stats{}, err
	}
	defer s.close()
	stats := Stats{Volumes: s.index.volumes() + len(s.index.unknownDirectories()), Damaged: s.index.damages()}
	if p.options.CloseBase {
		base, err := s.root.Stat(ctx)
		if err != nil {
			return Stats{}, fmt.Errorf("look at the base: %w", err)
		}
		stats.OpenBase = base.Mode&others != 0
	}
	trash, err := s.admin.Open(ctx, trashName)
	if err != nil {
		return Stats{}, fmt.Errorf("open the trash: %w", err)
	}
	defer trash.Close()
	for _, err := range trash.ReadDir(ctx) {
		if err != nil {
			return Stats{}, fmt.Errorf("read the trash: %w", err)
		}
		stats.Trash++
	}
	return stats, nil
}

// session is the base as one operation found it, or several that share it.
type session struct {
	*opened
	quota   Quota // nil when there is none
	root    Dir
	admin   Dir // .berth
	volumes Dir // .berth/volumes

	shared *visit // nil when it is not shared
}

func (s *session) close() {
	if s.shared != nil {
		s.shared.leave()
		return
	}
	s.closeDirs()
}

func (s *session) closeDirs() {
	for _, dir := range []Dir{s.volumes, s.admin, s.root} {
		if dir != nil {
			_ = dir.Close()
		}
	}
}

// enter opens the base for one operation and makes sure that it is the pool
// that this process knows. Every operation begins anew at the base's path,
// since a disk can be unmounted, or mounted over, at any time, unless
// Options.Recheck allows otherwise.
func (p *Pool) enter(ctx context.Context, initialise bool) (*session, error) {
	if p.options.Recheck == 0 {
		return p.look(ctx, initialise)
	}
	if s := p.visits.join(); s != nil {
		return s, nil
	}
	s, err := p.look(ctx, initialise)
	if err != nil {
		return nil, err
	}
	p.visits.replace(newVisit(s, p.options.Recheck))
	return s, nil
}

// look is enter without help from others.
func (p *Pool) look(ctx context.Context, initialise bool) (_ *session, err error) {
	s := &session{quota: p.options.Quota}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.root, err = p.fs.Root(ctx); err != nil {
		return nil, err
	}
	if s.opened = p.opened.Load(); s.opened == nil {
		if s.opened, err = p.open(ctx, s.root, initialise); err != nil {
			return nil, err
		}
	}
	if s.admin, err = openAdmin(ctx, s.root); err != nil {
		if errors.Is(err, ErrNotInitialised) {
			return nil, fmt.Errorf("%w: .berth is gone from its base, is the disk mounted?", ErrWrongPool)
		}
		return nil, err
	}
	if err = checkIdentity(ctx, s.admin, s.identity); err != nil {
		return nil, err
	}
	if s.volumes, err = openVolumes(ctx, s.admin); err != nil {
		return nil, err
	}
	return s, nil
}

// open takes the base into use, once per process.
func (p *Pool) open(ctx context.Context, root Dir, initialise bool) (_ *opened, err error) {
	unlock, err := p.opening.lock(ctx, "")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if state := p.opened.Load(); state != nil {
		return state, nil
	}

	admin, err := openAdmin(ctx, root)
	if errors.Is(err, ErrNotInitialised) && initialise {
		admin, err = p.makeAdmin(ctx, root)
	}
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	if err := p.private(ctx, admin); err != nil {
		return nil, err
	}
	lock, err := admin.Lock(ctx, lockName)
	if errors.Is(err, ErrLocked) {
		return nil, fmt.Errorf("pool %s is in use by another Berth on this machine: %w", p.options.Name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock pool %s: %w", p.options.Name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	known, err := p.identify(ctx, admin, initialise)
	if err != nil {
		return nil, err
	}
	idx, err := p.load(ctx, admin, known)
	if err != nil {
		return nil, err
	}
	if p.options.Siblings != nil {
		idx = p.options.Siblings.share(known.ID, idx)
	}
	p.closeBase(ctx, root, idx)
	state := &opened{identity: known, lock: lock, index: idx, plain: newPlainParents()}
	p.opened.Store(state)
	p.wakeUp() // for what a crash left in the trash
	return state, nil
}

// wakeUp makes Run look at the trash.
func (p *Pool) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
