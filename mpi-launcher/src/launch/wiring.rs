//! Which wire-up protocol the image's MPI needs, decided before anything starts.

use crate::protocol::Pmi;
use corebox_spec::{Failure, ImageFacts, JobSpec, MpiFamily, MpiFound, PmiChoice};

/// Decides the protocol from what was found in the image and what was asked.
///
/// # Errors
/// When the image holds no MPI, several without a choice, none of the one asked for, or a family that the asked protocol
/// cannot wire.
pub fn choose(spec: &JobSpec, facts: &ImageFacts) -> Result<Pmi, Failure> {
    let goal = format!("cannot wire up the ranks of `{}`", spec.image);
    let asked = match spec.pmi {
        PmiChoice::None => return Ok(Pmi::None),
        PmiChoice::Auto => None,
        PmiChoice::Pmix => Some(Pmi::Pmix),
        PmiChoice::Pmi1 => Some(Pmi::Pmi1),
    };
    let found: Vec<&MpiFound> =
        facts.mpi.iter().filter(|mpi| spec.mpi.is_none_or(|family| family == mpi.family)).collect();
    let list = |mpi: &[&MpiFound]| {
        mpi.iter().map(|m| format!("{} {}", m.family.name(), m.version)).collect::<Vec<_>>().join(", ")
    };
    let mut families: Vec<MpiFamily> = found.iter().map(|mpi| mpi.family).collect();
    families.dedup();
    match (families.as_slice(), asked) {
        ([], Some(pmi)) if spec.mpi.is_none() => Ok(pmi), // a statically linked MPI is not found; the user knows
        ([], _) => Err(match spec.mpi {
            Some(family) => Failure::new(goal, format!("the image holds no {}", family.name()))
                .hint(format!("it holds: {}", list(&facts.mpi.iter().collect::<Vec<_>>()))),
            None => Failure::new(goal, "the image holds no MPI library").hint(
                "for programs without MPI say `--pmi none`; for a statically linked MPI say `--pmi pmix` (Open MPI) or `--pmi pmi1` (MPICH).",
            ),
        }),
        ([family], None) => Ok(protocol_of(*family)),
        ([family], Some(pmi)) if serves(pmi, *family) => Ok(pmi),
        ([family], Some(_)) => Err(Failure::new(goal, format!("{} does not speak the protocol that --pmi names", family.name()))
            .hint("leave --pmi away: the right one is chosen.")),
        (several, _) => {
            let common = asked.filter(|pmi| several.iter().all(|family| serves(*pmi, *family)));
            common.ok_or_else(|| {
                Failure::new(goal, format!("the image holds several MPIs: {}", list(&found)))
                    .hint("name the one the program uses: `--mpi open-mpi`, `--mpi mpich`, `--mpi intel-mpi` or `--mpi mvapich`.")
            })
        }
    }
}

fn protocol_of(family: MpiFamily) -> Pmi {
    match family {
        MpiFamily::OpenMpi => Pmi::Pmix,
        MpiFamily::Mpich | MpiFamily::IntelMpi | MpiFamily::Mvapich => Pmi::Pmi1,
    }
}

/// Open MPI from version 4 has no PMI-1 client; Intel MPI has a PMIx one (`I_MPI_PMI=pmix`).
fn serves(pmi: Pmi, family: MpiFamily) -> bool {
    match pmi {
        Pmi::None => true,
        Pmi::Pmix => matches!(family, MpiFamily::OpenMpi | MpiFamily::IntelMpi),
        Pmi::Pmi1 => family != MpiFamily::OpenMpi,
    }
}
