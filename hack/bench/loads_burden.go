package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	backlogPoll = 500 * time.Millisecond
	// backlogPatience is how long a burden may take to show.
	backlogPatience = 30 * time.Second
	// ingestPatience is how long kube-controller-manager may take to see everything.
	ingestPatience = 15 * time.Minute
	ingestPoll     = 100 * time.Millisecond

	kcmQueue = "volumes"
)

func (s *scene) volumeQueue(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.cluster.plane.QueueDepth(ctx, kcmQueue)
}

// awaitIngested returns when kube-controller-manager has seen every volume there
// is: when it has written the phase of one made last. That must not be done
// while a berth has claims to bind, which could learn from it.
func (s *scene) awaitIngested(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ingestPatience, errors.New("kube-controller-manager did not get to the end of its volumes"))
	defer cancel()
	volumes := s.cluster.client.CoreV1().PersistentVolumes()
	s.lasts++
	last, err := volumes.Create(ctx, staticVolume(fmt.Sprintf("last-%d", s.lasts)), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for last.Status.Phase != corev1.VolumeAvailable {
		if err := sleep(ctx, ingestPoll); err != nil {
			return err
		}
		if last, err = volumes.Get(ctx, last.Name, metav1.GetOptions{}); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
	return volumes.Delete(ctx, last.Name, metav1.DeleteOptions{})
}

// awaitBacklog waits until so many volumes wait in kube-controller-manager's
// queue.
func (s *scene) awaitBacklog(ctx context.Context, n int) (missing string, err error) {
	deepest := 0
	for end := time.Now().Add(backlogPatience); time.Now().Before(end); {
		depth, err := s.volumeQueue(ctx)
		if err != nil {
			return "", err
		}
		if deepest = max(deepest, depth); depth >= n {
			return "", nil
		}
		if err := sleep(ctx, backlogPoll/5); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("at most %d volumes waited in kube-controller-manager's queue, not %d", deepest, n), nil
}

// filled makes n claims Bound through the berth, to be deleted.
func filled(n int) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		s.plan.deletions = n
		return s.fill(ctx, s.plan, s.pool)
	}
}

// deleting deletes the claims that filled has made, and waits for the backlog.
func deleting(backlog int) func(context.Context, *scene) (string, error) {
	return func(ctx context.Context, s *scene) (string, error) {
		if err := s.deleteClaims(ctx, s.plan.filledNamespace()); err != nil {
			return "", err
		}
		return s.awaitBacklog(ctx, backlog)
	}
}

func backlog(n int) func(context.Context, *scene) (string, error) {
	return func(ctx context.Context, s *scene) (string, error) { return s.awaitBacklog(ctx, n) }
}

// whileAway makes objects that kube-controller-manager finds complete when it
// comes back, and waits until it has seen all of them.
func (s *scene) whileAway(ctx context.Context, makeThem func() error) error {
	kcm := s.cluster.plane.ControllerManager()
	if err := kcm.Stop(); err != nil {
		return err
	}
	if err := makeThem(); err != nil {
		return err
	}
	if err := kcm.Start(ctx); err != nil {
		return err
	}
	return s.awaitIngested(ctx)
}

// released makes n volumes whose claims were deleted under the policy Retain, and
// claims of the same names, Bound to other volumes: what is left of a StatefulSet
// that was made anew. At each resync kube-controller-manager asks for the claim of
// each of the volumes.
func released(n int) func(context.Context, *scene) error {
	const names = 4
	return func(ctx context.Context, s *scene) error {
		return s.whileAway(ctx, func() error {
			if err := s.makePairs(ctx, "anew", names); err != nil {
				return err
			}
			return inParallel(ctx, n, func(i int) error {
				claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{
					Namespace: s.otherNamespace(), Name: fmt.Sprintf("anew-%05d", i%names),
					UID: types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", i)),
				}}
				volume := staticVolume(fmt.Sprintf("released-%05d", i))
				volume.Spec.ClaimRef = claimRefOf(claim)
				return s.makeVolume(ctx, volume, corev1.VolumeReleased)
			})
		})
	}
}

// foreign makes n Bound pairs of claim and volume that another provisioner could
// have made.
func foreign(n int) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		return s.whileAway(ctx, func() error { return s.makePairs(ctx, "foreign", n) })
	}
}

func foreignThere(n int) func(context.Context, *scene) (string, error) {
	return func(ctx context.Context, s *scene) (string, error) {
		list, err := s.cluster.client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			return "", err
		}
		var rest int64
		if list.RemainingItemCount != nil {
			rest = *list.RemainingItemCount
		}
		if rest < int64(n) {
			return fmt.Sprintf("there are %d volumes, not over %d", rest+1, n), nil
		}
		return "", nil
	}
}

// makeStatic makes n volumes without a claim, into each of which
// kube-controller-manager writes that it is available.
func makeStatic(n int) func(context.Context, *scene) (string, error) {
	return func(ctx context.Context, s *scene) (string, error) {
		err := inParallel(ctx, n, func(i int) error {
			_, err := s.cluster.client.CoreV1().PersistentVolumes().Create(ctx, staticVolume(fmt.Sprintf("static-%05d", i)), metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return "", err
		}
		return s.awaitBacklog(ctx, n/2)
	}
}

// stuckName is the volume whose status kube-controller-manager may not write.
const stuckName = "stuck"

// forbidStuck makes the policy that forbids it, and waits until it is enforced.
func forbidStuck(ctx context.Context, s *scene) error {
	const name = "bench-stuck-volume"
	fail := admissionv1.Fail
	api := s.cluster.client.AdmissionregistrationV1()
	_, err := api.ValidatingAdmissionPolicies().Create(ctx, &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: &fail,
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Update},
					Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"persistentvolumes/status"}},
				},
			}}},
			MatchConditions: []admissionv1.MatchCondition{{Name: "binder", Expression: fmt.Sprintf("request.userInfo.username == %q", kcmBinder)}},
			Validations:     []admissionv1.Validation{{Expression: fmt.Sprintf("!object.metadata.name.startsWith(%q)", stuckName)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = api.ValidatingAdmissionPolicyBindings().Create(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return s.awaitForbidden(ctx)
}

// awaitForbidden tries to write as kube-controller-manager's volume controller until
// it is refused.
func (s *scene) awaitForbidden(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the policy is not enforced"))
	defer cancel()
	config := s.cluster.plane.Config()
	config.Impersonate = rest.ImpersonationConfig{UserName: kcmBinder, Groups: []string{"system:masters"}}
	binder, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	volumes := s.cluster.client.CoreV1().PersistentVolumes()
	probe, err := volumes.Create(ctx, staticVolume(stuckName+"-probe"), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	for {
		_, err := binder.CoreV1().PersistentVolumes().Patch(ctx, probe.Name, types.StrategicMergePatchType,
			[]byte(`{"status":{"message":"probe"}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, "status")
		if isRefusal(err) {
			return volumes.Delete(ctx, probe.Name, metav1.DeleteOptions{})
		}
		if err := errors.Join(err, sleep(ctx, ingestPoll)); err != nil {
			return err
		}
	}
}

func isRefusal(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err)
}

func makeStuck(ctx context.Context, s *scene) (string, error) {
	_, err := s.cluster.client.CoreV1().PersistentVolumes().Create(ctx, staticVolume(stuckName), metav1.CreateOptions{})
	return "", err
}

// stuckRefused tells whether kube-controller-manager wanted to write.
func stuckRefused(ctx context.Context, s *scene) (string, error) {
	stuck, err := s.cluster.client.CoreV1().PersistentVolumes().Get(ctx, stuckName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	counts, err := countRequests(s.cluster.plane.AuditLogPath(), kcmBinder, window{start: stuck.CreationTimestamp.Time, end: time.Now()})
	if err != nil {
		return "", err
	}
	if stuck.Status.Phase == corev1.VolumeAvailable || len(counts[0].refused) == 0 {
		return fmt.Sprintf("the volume is %s, and of kube-controller-manager's requests were refused: %s", stuck.Status.Phase, countsText(counts[0].refused)), nil
	}
	return "", nil
}

// stopControllerManager stops the process after a while, as a frozen machine
// would, and lets it go on after another.
func stopControllerManager(after, away time.Duration) func(context.Context, *scene) (string, error) {
	return func(ctx context.Context, s *scene) (missing string, err error) {
		if err := sleep(ctx, after); err != nil {
			return "", err
		}
		pid := s.cluster.plane.ControllerManager().PID()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return "", fmt.Errorf("stop kube-controller-manager: %w", err)
		}
		defer func() { err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)) }()
		missing, err = s.openClaims(ctx)
		return missing, errors.Join(err, sleep(ctx, away))
	}
}

// restartControllerManager ends the process after a while, as a crash would, and
// starts it again after another.
func restartControllerManager(after, away time.Duration) func(context.Context, *scene) (string, error) {
	return func(ctx context.Context, s *scene) (string, error) {
		if err := sleep(ctx, after); err != nil {
			return "", err
		}
		kcm := s.cluster.plane.ControllerManager()
		if err := kcm.Kill(); err != nil {
			return "", err
		}
		missing, err := s.openClaims(ctx)
		if err := errors.Join(err, sleep(ctx, away)); err != nil {
			return "", err
		}
		return missing, kcm.Start(ctx)
	}
}

// openClaims says that the burst is over already if it is.
func (s *scene) openClaims(ctx context.Context) (missing string, err error) {
	claims, err := s.cluster.client.CoreV1().PersistentVolumeClaims(s.plan.id).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	bound := 0
	for i := range claims.Items {
		if claims.Items[i].Status.Phase == corev1.ClaimBound {
			bound++
		}
	}
	if bound == s.plan.claims {
		return "all claims were Bound before kube-controller-manager went away", nil
	}
	return "", nil
}
