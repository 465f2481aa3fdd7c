#if canImport(SwiftUI)
    import Calora
    import SwiftUI

    @main
    struct AssistantApp: App {
        @StateObject private var screen = AssistantScreen()

        var body: some Scene {
            WindowGroup { AssistantView(screen: screen) }
        }
    }
#endif
